"""ZeRO's ranks against the plain computation: the same losses at every stage, on any number of ranks, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import zero_processes as gangs
from tests.parity.zero_processes import IMAGES, TEXT, Case, dataset, files, losses, settings
from trainers import wire
from trainers.shards import ShardFile, Shards
from trainers.zero.inline import InlineZero
from trainers.zero.settings import Settings

TOY = "tests.parity.zero_models:"
DECIMALS = 5e-6  # five decimals


def plain(given: Settings, kind: str = TEXT, steps: int = 20) -> tuple[dict[int, float], InlineZero]:
    """Return the losses of the plain computation, and what it came to."""
    inline = InlineZero(given, dataset(kind), evaluate_batch=4)
    return {number: inline.step(number)["train/loss"] for number in range(1, steps + 1)}, inline


def differ(found: dict[int, float], expected: dict[int, float]) -> float:
    return max(abs(value - expected[number]) for number, value in found.items())


def shards(folder: Path, case: int, told: Any, step: int) -> dict[str, Any]:
    """Return what a run starts from that goes on from a step of a case."""
    return {"folder": str(folder / f"case-{case}" / f"step-{step:06d}"), "files": files(told, step)}


def trees(start: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    read = Shards.open(start["folder"], [ShardFile(**file) for file in start["files"]])
    return {tree: read.whole(tree) for tree in read.trees}


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(
        one[tree].keys() == other[tree].keys() and all(torch.equal(one[tree][n], other[tree][n]) for n in one[tree])
        for tree in one
    )


@pytest.mark.deepspeed
def test_two_ranks_train_evaluate_and_write_what_one_process_computes(tmp_path: Path):
    given = settings(steps=4)
    rounded = given._replace(stage=3, memory={"activations": "int8", "min_elements": 1})
    low = given._replace(stage=0, precision="bf16")
    cases = [Case(given._replace(stage=3), checkpoint_every=2), Case(rounded), Case(low)]
    told, in_8_bits, in_bf16 = gangs.run(tmp_path, cases)
    assert differ(losses(in_8_bits), plain(rounded, steps=4)[0]) < DECIMALS
    assert differ(losses(in_bf16), plain(low, steps=4)[0]) < 5e-4  # gradients are added in another order, in bf16
    expected, inline = plain(given, steps=4)
    assert sorted(losses(told)) == [1, 2, 3, 4] and differ(losses(told), expected) < DECIMALS
    evaluations = {one["step"]: one["values"]["test/loss"] for one in told[0] if one["kind"] == "evaluation"}
    assert sorted(evaluations) == [0, 4]
    assert evaluations[4] == pytest.approx(inline.evaluate(4)["test/loss"], abs=DECIMALS)
    held, exported = trees(shards(tmp_path, 0, told, 4)), inline.export()
    assert {tree: list(tensors) for tree, tensors in exported.items() if tensors} == {
        tree: [name for name in exported[tree] if name in tensors] for tree, tensors in held.items()
    }
    for name, tensor in exported["model"].items():
        torch.testing.assert_close(held["model"][name], tensor, atol=1e-4, rtol=0)
    kinds = {span[0] for one in told[1] if one["kind"] == "spans" for span in one["spans"]}
    assert kinds == {"F", "B", "U"}
    first = next(one["values"] for one in told[0] if one["kind"] == "step")
    whole = sum(4 * tensor.numel() for tensor in exported["model"].values())
    assert 0.5 * whole < first["memory/parameters_bytes"] < 0.6 * whole
    sent = [one["values"]["comm/collective_bytes"] for one in told[0] if one["kind"] == "step"]
    assert all(1.2 * whole < bytes_ < 1.6 * whole for bytes_ in sent[1:])  # 3 P (N - 1) / N, P the whole, N 2


@pytest.mark.slow
@pytest.mark.deepspeed
def test_every_stage_has_the_losses_of_plain_adamw(tmp_path: Path):
    given = settings()
    told = gangs.run(tmp_path, [Case(given._replace(stage=stage)) for stage in range(4)])
    expected, _ = plain(given)
    for one in told:
        assert differ(losses(one), expected) < DECIMALS
    assert expected[20] < expected[1]


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_run_goes_on_with_other_ranks_and_at_other_stages(tmp_path: Path):
    given = settings(model={**settings().model, "dropout": 0.0})  # ranks draw for shares of their own
    at = [given._replace(stage=stage) for stage in range(4)]
    full = gangs.run(tmp_path / "full", [Case(at[2], checkpoint_every=5), Case(at[3], checkpoint_every=5)])
    curves = [losses(one) for one in full]
    starts = [shards(tmp_path / "full", case, told, 5) for case, told in enumerate(full)]
    alone = [Case(at[stage]._replace(ranks=1), start=starts[i], begin=5, stop_at=9) for i, stage in enumerate((2, 1))]
    one = gangs.run(tmp_path / "one", alone, ranks=1)  # told to stop at step 9, they end with step 10, and its state
    assert [sorted(losses(told)) for told in one] == [[6, 7, 8, 9, 10]] * 2
    back = [shards(tmp_path / "one", case, told, 10) for case, told in enumerate(one)]
    ten = shards(tmp_path / "full", 1, full[1], 10)
    again = [Case(at[2], start=back[0], begin=10), Case(at[3], start=back[1], begin=10)]
    others = [Case(given, start=ten, begin=10) for given in at]
    two = gangs.run(tmp_path / "two", again + others)
    for told, curve in zip([*one, *two], [*curves, *curves, *[curves[1]] * 4], strict=True):
        assert differ(losses(told), curve) < DECIMALS
    assert losses(two[5]) == {number: loss for number, loss in curves[1].items() if number > 10}
    ended = [
        trees(shards(tmp_path / at, case, told, 20)) for at, case, told in (("full", 1, full[1]), ("two", 5, two[5]))
    ]
    assert same(*ended)  # with as many ranks at the same stage, bit for bit


@pytest.mark.slow
@pytest.mark.deepspeed
def test_states_go_to_and_from_one_process(tmp_path: Path):
    given = settings(stage=3)
    curve, inline = plain(given, steps=10)
    start = {tree: wire.encode(tensors).to_pybytes() for tree, tensors in inline.export().items() if tensors}
    cases = [Case(given._replace(stage=stage), start=start, begin=10) for stage in range(4)]
    told = gangs.run(tmp_path, cases)
    curve |= {number: inline.step(number)["train/loss"] for number in range(11, 21)}
    for one in told:
        assert differ(losses(one), curve) < DECIMALS
    other = InlineZero(given, dataset())
    other.restore(trees(shards(tmp_path, 3, told[3], 20)))
    for number in (21, 22):
        assert other.step(number)["train/loss"] == pytest.approx(inline.step(number)["train/loss"], abs=DECIMALS)


def toy(**kwargs: Any) -> dict[str, Any]:
    return {"name": None, "target": TOY + "tied", "kwargs": kwargs, "dtype": "float32"}


SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
PLAIN_MODEL = {"name": "transformer", "layers": 2, "heads": 2, "width": 16, "dtype": "float32"}
VARIANTS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "tied weights, logits in an object": (TEXT, DECIMALS, {"model": toy()}),
    "logits in a mapping": (TEXT, DECIMALS, {"model": toy(mapping=True)}),
    "a loss of the user's": (TEXT, DECIMALS, {"model": toy(), "loss": {"reduction": "mean", "target": TOY + "loss"}}),
    "batch normalisation": (IMAGES, DECIMALS, {"model": {"name": "resnet", "dtype": "float32"}, "optimizer": SGD}),
    "frozen": (TEXT, DECIMALS, {"model": {**PLAIN_MODEL, "pretrain": {"freeze": r"blocks\.0|tokens"}}}),
    "sums over three batches": (TEXT, 1e-3, {"accumulate": 3, "loss": {"reduction": "sum", "target": None}}),
    "an example for one rank": (TEXT, DECIMALS, {"batch_size": 1}),
    "lamb": (TEXT, DECIMALS, {"optimizer": {"name": "lamb", "lr": 0.01, "weight_decay": 0.1}}),
    "noise": (TEXT, DECIMALS, {"clip_value": 0.01, "gradient_noise": {"eta": 0.01, "gamma": 0.55}}),
    "nadam": (TEXT, DECIMALS, {"optimizer": {"name": "nadam", "lr": 0.001}}),
    "adagrad": (TEXT, DECIMALS, {"optimizer": {"name": "adagrad", "lr": 0.01}}),
    "bf16": (TEXT, 2e-3, {"precision": "bf16"}),
    "adagrad in bf16": (TEXT, 2e-3, {"precision": "bf16", "optimizer": {"name": "adagrad", "lr": 0.01}}),
}


@pytest.mark.slow
@pytest.mark.deepspeed
@pytest.mark.parametrize("name", VARIANTS)
def test_models_losses_and_optimizers_of_all_kinds_train_as_in_one_process(tmp_path: Path, name: str):
    kind, tolerance, changes = VARIANTS[name]
    given = settings(**changes)
    told = gangs.run(tmp_path, [Case(given._replace(stage=stage), kind=kind) for stage in range(4)])
    expected, inline = plain(given, kind)
    exported = inline.export()
    for case, one in enumerate(told):
        assert differ(losses(one), expected) < tolerance
        held = trees(shards(tmp_path, case, one, 20))
        assert {tree: set(tensors) for tree, tensors in held.items()} == {
            tree: set(tensors) for tree, tensors in exported.items() if tensors
        }
        assert all(tensor.dtype == torch.float32 for tensor in held["model"].values())
        for buffer in (n for n in exported["model"] if "running" in n):  # of the whole batch, on every rank
            torch.testing.assert_close(held["model"][buffer], exported["model"][buffer], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.deepspeed
def test_bf16_goes_on_from_weights_in_full_precision(tmp_path: Path):
    given = settings(precision="bf16", stage=3)
    (full,) = gangs.run(tmp_path / "full", [Case(given)])
    start = shards(tmp_path / "full", 0, full, 10)
    low = [weight.bfloat16().float() for weight in trees(start)["model"].values()]
    assert any(not torch.equal(one, weight) for one, weight in zip(low, trees(start)["model"].values(), strict=True))
    (rest,) = gangs.run(tmp_path / "rest", [Case(given, start=start, begin=10)])
    assert losses(rest) == {number: loss for number, loss in losses(full).items() if number > 10}


@pytest.mark.slow
@pytest.mark.deepspeed
def test_states_offloaded_to_the_host_change_nothing(tmp_path: Path):
    given = settings(offload="cpu")
    told = gangs.run(tmp_path, [Case(given._replace(stage=stage)) for stage in (1, 2, 3)])
    expected, _ = plain(settings())
    for one in told:
        assert differ(losses(one), expected) < DECIMALS


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_damaged_file_is_named_by_the_rank_that_checks_it(tmp_path: Path):
    given = settings(steps=2)
    (told,) = gangs.run(tmp_path / "a", [Case(given)])
    start = shards(tmp_path / "a", 0, told, 2)
    path = Path(start["folder"]) / "shard-1-of-2.arrow"
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"shard-1-of-2\.arrow does not match"):
        gangs.run(tmp_path / "b", [Case(given._replace(steps=4), start=start, begin=2)])
