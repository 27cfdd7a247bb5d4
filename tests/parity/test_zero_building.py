"""Models built in parts: their weights are those of a plain build, and no rank holds them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity import zero_processes as gangs
from tests.parity.zero_processes import Context, dataset, settings
from trainers import models

LIVE_BYTES = 1 << 14
MODELS: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    ({"name": "transformer", "layers": 4, "heads": 4, "width": 64}, (16,), 31),
    ({"name": "mlp", "hidden": [96, 64]}, (1, 8, 8), 10),
    ({"name": "cnn"}, (1, 12, 12), 10),
    ({"name": "resnet"}, (3, 8, 8), 10),
    ({"name": None, "target": "tests.parity.zero_models:tied", "kwargs": {}}, (8,), 31),
]


@pytest.mark.slow
@pytest.mark.deepspeed
def test_a_model_built_in_parts_has_the_weights_of_a_plain_one(tmp_path: Path):
    gangs.each(tmp_path, _build, 2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    assert [same for same, *_ in found] == [True] * len(MODELS)
    for _, peak_bytes, whole_bytes, largest_bytes in found:
        assert peak_bytes <= whole_bytes / 2 + 3 * largest_bytes + LIVE_BYTES
    assert found[0][1] < 0.85 * found[0][2]  # with layers enough, it is far from whole


def _build(rank: int, ranks: int, folder: Path) -> None:
    import deepspeed

    from trainers.zero.building import build_in_parts
    from trainers.zero.engine import prepare

    cpu, found = torch.device("cpu"), []
    prepare(cpu)
    for section, shape, num_classes in MODELS:

        def build(section: Any = section, shape: Any = shape, num_classes: int = num_classes) -> torch.nn.Module:
            plain = {"dtype": "float32", **section}
            return models.build(plain, input_shape=shape, num_classes=num_classes, seed=3)

        configuration = {"train_batch_size": ranks, "zero_optimization": {"stage": 3}}
        plain = build()
        model, peak_bytes = build_in_parts(build, lambda sizes, given=configuration: given, cpu, live_bytes=LIVE_BYTES)
        same = all(torch.equal(one, other) for one, other in zip(plain.buffers(), model.buffers(), strict=True))
        assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
        for own, other in zip(plain.parameters(), model.parameters(), strict=True):
            with deepspeed.zero.GatheredParameters([other]):
                same = same and torch.equal(own, other)
        sizes = [4 * parameter.numel() for parameter in plain.parameters()]
        found.append((same, peak_bytes, sum(sizes), max(sizes)))
    if rank == 0:
        torch.save(found, folder / "found.pt")


@pytest.mark.slow
@pytest.mark.deepspeed
def test_no_rank_ever_has_the_whole_model_while_it_trains(tmp_path: Path):
    gangs.each(tmp_path, _watch, 2)
    whole, most, least = torch.load(tmp_path / "watched.pt", weights_only=True)
    assert 0 < least <= most < 0.5 * whole


def _watch(rank: int, ranks: int, folder: Path) -> None:
    """Count, whenever a layer is about to run or has run, parameters that are whole on this rank."""
    from trainers.zero import engine
    from trainers.zero.rank import Rank

    given = settings(stage=3, model={**settings().model, "layers": 8, "width": 32}, steps=3)
    made = engine.make(given, dataset(), torch.device("cpu"))
    parameters = list(made.model.parameters())
    counts: list[int] = []

    def count(*_: Any) -> None:
        counts.append(sum(p.data.numel() for p in parameters))

    for module in made.model.modules():
        module.register_forward_hook(count)
        module.register_full_backward_hook(count)
    work = Rank(given, dataset(), made, Context(rank, ranks).rank, torch.device("cpu"), 4)
    for number in range(1, 4):
        work.step(number)
        count()
    work.evaluate(3)
    inside = [number for number in counts if number]
    if rank == 0:
        torch.save((sum(p.ds_numel for p in parameters), max(counts), min(inside)), folder / "watched.pt")
