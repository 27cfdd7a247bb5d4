"""Activations in 8 bits on ranks that hold pieces: exact losses, near gradients, copies that stay copies, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.parity import sharded_processes
from tests.parity.sharded_processes import HEADS, Context, dataset, settings
from trainers.activations.counting import Counting
from trainers.pipeline.state import Trees, merge
from trainers.sharded import program
from trainers.sharded.inline import InlineSharded
from trainers.sharded.rank import Rank
from trainers.sharded.settings import Settings

MEMORY = {"activations": "int8", "min_elements": 1, "groups": 4}
STEPS = 4
LAYOUTS: dict[str, Any] = {
    "copies": ((2,), [], ()),
    "examples": ((2,), [], (0,)),
    "heads": ((2,), HEADS, ()),
    "uneven": ((2,), [("*.expand.*", ["S(0)"]), ("tokens.weight", ["S(0)"]), ("head.weight", ["S(0)"])], ()),
    "one by two": ((1, 2), [(name, ["B", *entry]) for name, entry in HEADS], (0,)),
}


def given(layout: str, memory: Any = MEMORY, **changes: Any) -> Settings:
    return settings(*LAYOUTS[layout], {"memory": memory, "steps": STEPS, "accumulate": 2, **changes})


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return sharded_processes.each(tmp_path_factory.mktemp("memory"), 2, _look)


def _look(context: Context, folder: Path) -> dict[str, dict[str, Any]]:
    data, found = dataset(), {}
    for layout in LAYOUTS:
        exact, rounded = (program.build(context, given(layout, memory), data) for memory in (None, MEMORY))
        loss, gradient = _one_batch(exact, data)
        kept = Counting(None, rounded.model, [rounded.layout.local(p.detach()) for p in rounded.model.parameters()])
        rounded.saving.saver.watch = kept.watch
        rounded_loss, rounded_gradient = _one_batch(rounded, data)
        trained = program.build(context, given(layout), data)
        sent = {name: [one.step(1).values["comm/boundary_bytes"]] for name, one in (("exact", exact), ("8", trained))}
        for number in range(2, STEPS // 2 + 1):
            trained.step(number)
        half = _gathered(trained.export(), folder, f"{layout}-{context.rank}", context)
        resumed = program.build(context, given(layout), data)
        resumed.restore(half)
        for one in (trained, resumed):
            for number in range(STEPS // 2 + 1, STEPS + 1):
                one.step(number)
        found[layout] = {
            "losses": (loss, rounded_loss), "gradients": (gradient, rounded_gradient),
            "bytes": (kept.plain_bytes, kept.kept_bytes), "sent": (sent["exact"], sent["8"]),
            "parts": trained.export(), "resumed": resumed.export(), "drift": _drift(trained),
        }  # fmt: skip
    return found


def _one_batch(rank: Rank, data: Any) -> tuple[float, Tensor]:
    """Return the loss of the first batch, and this rank's pieces of its gradient."""
    rank.model.train()
    torch.manual_seed(rank.settings.batch_seed(1, 0))
    rows = rank.settings.batches(len(data.train_y), 1)[0]
    loss = rank.train_on(rank.inputs(data.train_x[rows]), data.train_y[rows], 1.0)
    rank.gradients()
    gradient = torch.cat([piece.grad.flatten() for piece in rank._moved.values() if piece.grad is not None])
    rank.model.zero_grad()
    return loss, gradient.clone()


def _gathered(own: Trees, folder: Path, name: str, context: Context) -> Trees:
    torch.save(own, folder / f"{name}.trees")
    dist.barrier()
    stem = name.rpartition("-")[0]
    parts = [torch.load(folder / f"{stem}-{r}.trees", weights_only=True) for r in range(context.world_size)]
    return merge(parts, [])


def _same(one: Trees, other: Trees) -> bool:
    return one.keys() == other.keys() and all(
        named.keys() == other[tree].keys() and all(torch.equal(named[name], other[tree][name]) for name in named)
        for tree, named in one.items()
    )


def _drift(rank: Rank) -> float:
    """Return the largest difference between this rank's copies of weights and those of the first."""
    found = [0.0]
    for parameter in rank.model.parameters():
        if all(placement.is_replicate() for placement in parameter.placements):
            own = rank.layout.local(parameter.detach())
            first = own.clone()
            dist.broadcast(first, 0)
            found.append(float((own - first).abs().max()))
    return max(found)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_exact_and_gradients_near_and_nothing_more_is_sent(ranks, layout) -> None:
    for one in ranks:
        (exact, rounded), (right, near) = one[layout]["losses"], one[layout]["gradients"]
        assert rounded == exact
        assert 0 < float((near - right).norm()) < 0.03 * float(right.norm())
        sent_exactly, sent = one[layout]["sent"]
        assert sent == sent_exactly


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rank_keeps_an_eighth_of_the_bytes_of_float64(ranks, layout) -> None:
    for one in ranks:
        plain_bytes, kept_bytes = one[layout]["bytes"]
        assert plain_bytes / 8 < kept_bytes < plain_bytes / 5  # statistics stay as they are


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_of_weights_stay_copies_and_a_resumed_run_has_the_same_bits(ranks, layout) -> None:
    assert [one[layout]["drift"] for one in ranks] == [0.0, 0.0]
    whole, resumed = (merge([one[layout][which] for one in ranks], []) for which in ("parts", "resumed"))
    assert _same(whole, resumed) and len(whole["memory.alpha"]) > 10


def test_ranks_that_hold_copies_have_the_bits_of_one_process(ranks) -> None:
    alone = InlineSharded(given("copies"), dataset())
    for number in range(1, STEPS + 1):
        alone.step(number)
    merged = merge([one["copies"]["parts"] for one in ranks], alone._names)
    assert _same(merged, alone.export())


def test_every_piece_has_ranges_of_its_own_and_one_rank_saves_them(ranks) -> None:
    first, second = (one["heads"]["parts"]["memory.alpha"] for one in ranks)
    assert first.keys().isdisjoint(second)
    assert any(name.endswith(":0of2") for name in first) and all(name.endswith(":1of2") for name in second)
    first, second = (one["one by two"]["parts"]["memory.alpha"] for one in ranks)
    assert any(name.endswith(":*,1of2") for name in second)
