"""Activations in 8 bits in gangs: the same bits wherever the model is cut, near gradients, and resumed runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.settings import Settings
from trainers.pipeline.state import Trees, whole

_SPEC = importlib.util.spec_from_file_location("pipelines", Path(__file__).with_name("test_pipeline.py"))
assert _SPEC is not None and _SPEC.loader is not None
pipelines = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(pipelines)

MEMORY = {"min_elements": 1, "groups": 3}
KINDS = "p(p2)t"  # nine layers, with skips and pairs
ADAM = {"name": "adam", "lr": 0.01, "kwargs": {}}


@pytest.fixture(autouse=True)
def toy_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def setting(kinds: str, counts: list[int], **changes: Any) -> Settings:
    return pipelines.setting(kinds, counts, **{"optimizer": ADAM, "memory": MEMORY, **changes})


def trained(chosen: Settings, steps: int = 2, start: Trees | None = None, begin: int = 0) -> tuple[list[float], Trees]:
    """Return the losses and the whole state."""
    ranks = InlinePipeline(chosen, pipelines.dataset())
    if start is not None:
        ranks.restore(start)
    losses = [ranks.step(begin + number + 1).loss for number in range(steps)]
    return losses, whole(ranks.ranks)


def assert_same(got: tuple[list[float], Trees], want: tuple[list[float], Trees]) -> None:
    assert got[0] == want[0] and got[1].keys() == want[1].keys()
    for tree, tensors in want[1].items():
        assert got[1][tree].keys() == tensors.keys(), tree
        assert all(torch.equal(got[1][tree][name], tensor) for name, tensor in tensors.items()), tree


@settings(max_examples=4, deadline=None)
@given(
    kinds=st.sampled_from(["pppp", "(pp)p", "tptp", "t(2tp)t", "p2p2p"]),
    stages=st.integers(2, 4),
    microbatches=st.integers(1, 5),
    accumulate=st.integers(1, 2),
    running=st.booleans(),
    seed=st.integers(0, 99),
)
def test_where_the_model_is_cut_moves_no_bit(
    kinds: str, stages: int, microbatches: int, accumulate: int, running: bool, seed: int
) -> None:
    count = pipelines.num_layers(kinds)
    memory = {**MEMORY, "range": "running" if running else "own"}
    options = {"microbatches": microbatches, "accumulate": accumulate, "memory": memory}
    want = trained(setting(kinds, [count], **options))
    assert_same(trained(setting(kinds, pipelines.cut(count, stages, np.random.default_rng(seed)), **options)), want)
    assert ("memory.alpha" in want[1]) == running


def test_a_backward_that_is_split_computes_what_one_that_is_not_does() -> None:
    want = trained(setting(KINDS, [4, 5], schedule="1f1b"))
    assert_same(trained(setting(KINDS, [4, 5], schedule="zero-bubble")), want)


def test_the_first_step_s_loss_is_exact_and_gradients_are_near() -> None:
    for options in ({}, {"recompute": ("always",) * 2}, {"schedule": "zero-bubble"}, {"replicas": 2}):
        plain = setting("t(2tp)t", [5, 5], memory=None, **options)
        rounded = plain._replace(memory=MEMORY)
        assert trained(rounded, 1)[0] == trained(plain, 1)[0]
        want, got = (pipelines.pipeline_gradients(one, pipelines.dataset()) for one in (plain, rounded))
        for name in want:
            assert float((got[name] - want[name]).norm()) < 0.03 * float(want[name].norm()) + 1e-6, name


@pytest.mark.parametrize("recompute", ["always", "except-last"])
def test_computing_again_begins_with_the_carry_in_8_bits_and_rounds_it_once(recompute: str) -> None:
    """What a layer saves of the decoded carry is the encoding that there is: a linear layer alone on its stage, which
    keeps nothing but its input, has the gradient that it has when nothing is computed again."""
    one = setting("p", [1, 2], microbatches=3)
    again = one._replace(recompute=(recompute, "never"))
    plain, rounded = (pipelines.pipeline_gradients(each, pipelines.dataset()) for each in (one, again))
    assert torch.equal(rounded["layers.0.weight"], plain["layers.0.weight"])
    chosen = setting(KINDS, [4, 5], recompute=(recompute,) * 2)
    losses, trees = trained(chosen)
    exact, _ = trained(chosen._replace(memory=None))
    assert losses[0] == exact[0] and np.allclose(losses, exact, atol=0.01)
    assert {name for name in trees["memory.alpha"] if name.endswith("in0")} >= {"0/in0", "4/in0"}


@pytest.mark.parametrize("options", [{}, {"replicas": 2}, {"recompute": ("always",) * 2}])
def test_a_resumed_run_ends_as_an_uninterrupted_one(options: dict[str, Any]) -> None:
    chosen = setting(KINDS, [4, 5], **options)
    want = trained(chosen, 4)
    _, half = trained(chosen, 2)
    losses, end = trained(chosen, 2, half, begin=2)
    assert_same((want[0][:2] + losses, end), want)
    assert options.get("replicas", 1) == 1 or any(name.endswith("@1") for name in half["memory.alpha"])


def test_a_run_is_resumed_with_other_cuts() -> None:
    want = trained(setting(KINDS, [9]), 6)
    state: Trees | None = None
    losses: list[float] = []
    for turn, counts in enumerate(([4, 5], [9], [3, 1, 5])):
        more, state = trained(setting(KINDS, counts), 2, state, begin=2 * turn)
        losses += more
    assert state is not None
    assert_same((losses, state), want)
