"""What a pipeline's ranks do to gradients and with optimizers, held against one rank doing all of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strategies.optimizers.shares import largest, owners
from tests.parity.test_pipeline import (
    ADAM,
    assert_close,
    cut,
    dataset,
    models_tree,
    num_layers,
    reference,
    setting,
    trained,
)
from trainers.gradients import Shaping
from trainers.local import loss_of
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.settings import Batches
from trainers.pipeline.state import whole

LAMB = {"name": "lamb", "lr": 0.05, "weight_decay": 0.1, "kwargs": {"exclude": "bias|norm"}}
LARS = {"name": "lars", "lr": 2.0, "momentum": 0.9, "weight_decay": 0.1, "kwargs": {}}
NOISE = {"clip_value": 0.05, "gradient_noise": {"eta": 0.01, "gamma": 0.55}}
KINDS, CUTS = "t(pp)tp", [[9], [4, 5], [3, 2, 4]]


@pytest.fixture(autouse=True)
def toy_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        left[tree].keys() == right[tree].keys()
        and all(torch.equal(left[tree][name], right[tree][name]) for name in left[tree])
        for tree in left
    )


@pytest.mark.parametrize("changes", [{"optimizer": LAMB}, {"optimizer": LARS}, {"optimizer": ADAM, **NOISE}])
@pytest.mark.parametrize("replicas", [1, 2])
def test_any_number_of_stages_makes_the_same_bits(replicas: int, changes: dict[str, Any]) -> None:
    data = dataset()
    states = [trained(setting(KINDS, counts, replicas=replicas, **changes), data, 4) for counts in CUTS]
    assert all(same(state, states[0][0]) and losses == states[0][1] for state, losses in states[1:])


@pytest.mark.parametrize("replicas", [2, 3])
def test_all_replicas_add_the_noise_of_one(replicas: int) -> None:
    data = dataset()
    alone = InlinePipeline(setting(KINDS, [9], **NOISE), data)
    several = InlinePipeline(setting(KINDS, [4, 5], replicas=replicas, **NOISE), data)
    for step in (1, 2, 3):
        alone.step(step)
        several.step(step)
    want = {name: parameter.detach() for name, parameter in alone.ranks[0].part.own}
    for rank in several.ranks:
        assert_close(*(_own(rank.part.own, tree) for tree in (dict(rank.part.own), want)), 1e-10)
        for name, parameter in rank.part.own:
            first = dict(several.ranks[rank.stage].part.own)[name]
            assert torch.equal(parameter, first), name


def _own(own: list[tuple[str, nn.Parameter]], tree: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tree[name].detach() for name, _ in own}


def test_a_pipeline_with_noise_and_both_kinds_of_clipping_is_the_plain_program() -> None:
    data = dataset()
    chosen = setting(KINDS, [4, 5], optimizer=ADAM, clip_norm=0.3, **NOISE)
    state, _ = trained(chosen, data, 6)
    model = reference(chosen, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    shaping = Shaping.of(0.05, NOISE["gradient_noise"], chosen.seed)  # type: ignore[arg-type]
    batches = Batches(chosen, len(data.train_y))
    for step in range(1, 7):
        (rows,) = batches.of_step(step)
        optimizer.zero_grad()
        loss_of(model(torch.from_numpy(data.train_x[rows])), torch.from_numpy(data.train_y[rows])).backward()
        norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
        for parameter in model.parameters():
            parameter.grad *= min(1.0, 0.3 / float(norm))
        shaping.apply(((name, p.grad) for name, p in model.named_parameters()), step)
        optimizer.step()
    assert_close({name: state["model"][name] for name in models_tree(model)}, models_tree(model))


# --------------------------------------------------------------------------------- shared out over the replicas


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.sampled_from(["pppp", "t(pp)tp", "tptp", "p(b)p"]),
    stages=st.integers(1, 3),
    replicas=st.integers(2, 4),
    optimizer=st.sampled_from([ADAM, LAMB, {"name": "sgd", "lr": 0.1, "kwargs": {}}]),
    clip_norm=st.sampled_from([None, 0.05]),
    seed=st.integers(0, 99),
)
def test_shared_out_optimizer_states_change_no_bit(
    kinds: str, stages: int, replicas: int, optimizer: dict[str, Any], clip_norm: float | None, seed: int
) -> None:
    data, ends = dataset(), []
    counts = cut(num_layers(kinds), stages, np.random.default_rng(seed))
    for shard in (False, True):
        chosen = setting(
            kinds, counts, replicas=replicas, optimizer=optimizer, clip_norm=clip_norm, shard_optimizer=shard,
            batch_size=16, microbatches=2,
        )  # fmt: skip
        pipeline = InlinePipeline(chosen, data)
        losses = [pipeline.step(number).loss for number in (1, 2)]
        ends.append((whole(pipeline.ranks), losses, pipeline))
    (one, losses, _), (other, others, shared) = ends
    assert same(one, other) and losses == others
    for rank in shared.ranks:  # every replica has the whole model, and its own share of what is remembered
        first = dict(shared.ranks[rank.stage].part.own)
        assert all(torch.equal(parameter, first[name]) for name, parameter in rank.part.own)
    for stage in range(stages):
        held = Counter(
            name for rank in shared.ranks if rank.stage == stage and rank.update.optimizer is not None
            for name, parameter in rank.part.own if parameter in rank.update.optimizer.state
        )  # fmt: skip
        uses = Counter(name for name, _ in shared.ranks[stage].part.own)
        assert held == (Counter() if optimizer["name"] == "sgd" else uses)  # each name once over the replicas


def test_a_run_goes_on_with_states_shared_out_otherwise() -> None:
    data = dataset()
    plain = setting(KINDS, [4, 5], replicas=2, optimizer=LAMB)
    want, _ = trained(plain, data, 6)
    trees = None
    for shard, replicas, first in ((True, 2, 1), (False, 2, 3), (True, 2, 5)):
        pipeline = InlinePipeline(plain._replace(shard_optimizer=shard, replicas=replicas), data)
        if trees is not None:
            pipeline.restore(trees)
        for number in (first, first + 1):
            pipeline.step(number)
        trees = whole(pipeline.ranks)
    assert trees is not None and same(trees, want)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), max_size=9), st.integers(1, 5))
def test_shares_are_whole_parameters_and_nearly_even(sizes: dict[str, int], num_ranks: int) -> None:
    found = owners(sizes, num_ranks)
    assert found.keys() == sizes.keys() and set(found.values()) <= set(range(num_ranks))
    bound = max([-(-sum(sizes.values()) // num_ranks), *sizes.values()], default=0)
    assert bound <= largest(sizes, num_ranks) <= 2 * bound
    assert owners(dict(sizes), num_ranks) == found
