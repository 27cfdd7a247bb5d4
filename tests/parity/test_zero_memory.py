"""Activations in 8 bits on ranks of ZeRO: one process has their losses at every stage; so have other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import zero_processes as gangs
from tests.parity.zero_processes import TEXT, Case, dataset, files, losses, settings
from trainers import wire
from trainers.data import to_tensor
from trainers.shards import ShardFile, Shards
from trainers.zero.inline import InlineZero
from trainers.zero.settings import Settings, Shares

MEMORY = {"activations": "int8", "min_elements": 1, "groups": 4}
DECIMALS = 5e-6  # five decimals


def plain(given: Settings, steps: int, kind: str = TEXT) -> tuple[dict[int, float], InlineZero]:
    """Return the losses of one process, and what it came to."""
    inline = InlineZero(given, dataset(kind), evaluate_batch=4)
    return {number: inline.step(number)["train/loss"] for number in range(1, steps + 1)}, inline


def differ(found: dict[int, float], expected: dict[int, float]) -> float:
    return max(abs(value - expected[number]) for number, value in found.items())


def start_of(folder: Path, case: int, told: Any, step: int) -> dict[str, Any]:
    return {"folder": str(folder / f"case-{case}" / f"step-{step:06d}"), "files": files(told, step)}


def ranges(start: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    read = Shards.open(start["folder"], [ShardFile(**file) for file in start["files"]])
    return {tree: read.whole(tree) for tree in read.trees if tree.startswith("memory.")}


def nearly(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return all(
        one[tree].keys() == other[tree].keys()
        and all(torch.allclose(one[tree][name], other[tree][name], atol=1e-4) for name in one[tree])
        for tree in ("memory.alpha", "memory.beta")
    )


@pytest.mark.slow
@pytest.mark.deepspeed
def test_ranks_with_parts_of_weights_round_as_one_process_does_and_remember_its_ranges(tmp_path: Path):
    given = settings(steps=3, memory=MEMORY)
    (told,) = gangs.run(tmp_path, [Case(given._replace(stage=3))])
    expected, inline = plain(given, 3)
    exact, _ = plain(given._replace(memory=None), 3)
    assert sorted(losses(told)) == [1, 2, 3] and differ(losses(told), expected) < DECIMALS
    assert losses(told)[1] == pytest.approx(exact[1], abs=DECIMALS)  # the forward pass is exact
    assert 0 < abs(expected[3] - exact[3]) < 0.02
    held = ranges(start_of(tmp_path, 0, told, 3))
    assert len(held["memory.alpha"]) > 10 and nearly(held, inline.export())


@pytest.mark.slow
@pytest.mark.deepspeed
def test_every_stage_and_shares_of_several_batches_have_one_processs_losses(tmp_path: Path):
    given = settings(steps=6, memory=MEMORY, accumulate=2, batch_size=5)
    told = gangs.run(tmp_path, [Case(given._replace(stage=stage)) for stage in range(4)])
    expected, inline = plain(given, 6)
    for case, one in enumerate(told):
        assert differ(losses(one), expected) < DECIMALS
        assert nearly(ranges(start_of(tmp_path, case, one, 6)), inline.export())


@pytest.mark.slow
@pytest.mark.deepspeed
def test_ranges_go_on_with_other_ranks_and_in_one_process(tmp_path: Path):
    given = settings(steps=8, memory=MEMORY, stage=3)
    (full,) = gangs.run(tmp_path / "full", [Case(given, checkpoint_every=4)])
    four = start_of(tmp_path / "full", 0, full, 4)
    (again,) = gangs.run(tmp_path / "again", [Case(given, start=four, begin=4)])
    assert losses(again) == {step: loss for step, loss in losses(full).items() if step > 4}
    alone = given._replace(ranks=1, stage=1)
    (one,) = gangs.run(tmp_path / "one", [Case(alone, start=four, begin=4)], ranks=1)
    read = Shards.open(four["folder"], [ShardFile(**file) for file in four["files"]])
    inline = InlineZero(alone, dataset())
    inline.restore({tree: read.whole(tree) for tree in read.trees})
    assert nearly(inline.export(), ranges(four))
    assert differ(losses(one), {step: inline.step(step)["train/loss"] for step in range(5, 9)}) < DECIMALS
    _, begun = plain(given, 4)
    start = {tree: wire.encode(tensors).to_pybytes() for tree, tensors in begun.export().items() if tensors}
    (two,) = gangs.run(tmp_path / "two", [Case(given, start=start, begin=4)])
    assert differ(losses(two), {step: begun.step(step)["train/loss"] for step in range(5, 9)}) < DECIMALS


@pytest.mark.slow
@pytest.mark.deepspeed
def test_views_of_weights_that_are_let_go_come_back_and_are_not_rounded(tmp_path: Path):
    model = {"name": None, "target": "tests.parity.zero_models:Multiplied", "dtype": "float32", "kwargs": {}}
    given = settings(steps=4, memory=MEMORY, model=model)
    told = gangs.run(tmp_path / "runs", [Case(given._replace(stage=stage)) for stage in (2, 3)])
    expected, _ = plain(given, 4)
    for one in told:
        assert differ(losses(one), expected) < DECIMALS
    gangs.each(tmp_path / "views", _look_at_views, 2, given._replace(stage=3))
    for rank in range(2):
        found = torch.load(tmp_path / "views" / f"views-{rank}.pt", weights_only=True)
        assert found["views"] >= 4 and found["held"] == 0 and found["same"] and found["let_go"]


def _look_at_views(rank: int, ranks: int, folder: Path, given: Settings) -> None:
    import deepspeed

    from trainers.activations.weights import Gathered
    from trainers.zero import engine
    from trainers.zero.keeping import Keeping

    data = dataset()
    made = engine.make(given, data, torch.device("cpu"))
    kept, share = Keeping(given, made.model), Shares(given, 37).of_step(1, rank)[0]
    inputs = to_tensor(data.train_x[share.rows], data, torch.float32)
    packed: list[Any] = []
    kept._saver.watch = lambda tensor, what: packed.append(what)
    with kept.share(1, 0, rank, share, inputs):
        returned = made.engine(inputs)
    weights = [made.model.first, made.model.frozen, made.model.body.weight]
    views = [one for one in packed if isinstance(one, Gathered)]
    square = [one for one in packed if isinstance(one, torch.Tensor) and one.shape == (24, 24) and one.is_leaf]
    held = sum(not any(one is weight for weight in weights) for one in square)
    let_go = all(weight.ds_status.name == "NOT_AVAILABLE" for weight in weights)
    seen = [view.get() for view in views]  # gathered for the purpose
    let_go &= all(weight.ds_status.name == "NOT_AVAILABLE" for weight in weights)
    with deepspeed.zero.GatheredParameters(weights):
        same = all(torch.equal(one, view.get()) for one, view in zip(seen, views, strict=True))
        same &= all(one.stride() == view.get().stride() for one, view in zip(seen, views, strict=True))
    made.engine.backward(returned.float().square().mean())
    torch.save({"views": len(views), "held": held, "same": same, "let_go": let_go}, folder / f"views-{rank}.pt")


@pytest.mark.slow
@pytest.mark.deepspeed
def test_uneven_shares_of_which_one_keeps_less_or_has_no_example(tmp_path: Path):
    given = settings(steps=6, stage=3)
    few = given._replace(batch_size=5, memory={**MEMORY, "min_elements": 300})  # the second rank's are smaller
    none = given._replace(batch_size=18, memory=MEMORY)  # the third batch has one example
    low = given._replace(memory=MEMORY, precision="bf16")
    told = gangs.run(tmp_path, [Case(few), Case(none), Case(low)])
    assert differ(losses(told[0]), plain(few, 6)[0]) < DECIMALS
    assert differ(losses(told[1]), plain(none, 6)[0]) < DECIMALS
    assert differ(losses(told[2]), plain(low, 6)[0]) < 0.02
    assert differ(losses(told[2]), plain(given._replace(memory=MEMORY), 6)[0]) < 0.05
