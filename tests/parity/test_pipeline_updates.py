"""What a pipeline's ranks do to gradients and with optimizers, held against one rank doing all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.parity.test_pipeline import ADAM, assert_close, dataset, models_tree, reference, setting, trained
from trainers.gradients import Shaping
from trainers.local import loss_of
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.settings import Batches

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
