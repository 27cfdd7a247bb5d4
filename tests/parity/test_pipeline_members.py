"""Replicas of a stage: when their gradients leave, and that no bit of a sum depends on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.parity.test_pipeline import SCHEDULES, dataset, setting
from tests.parity.test_pipeline_updates import same
from trainers.pipeline import members
from trainers.pipeline.collective import GroupCollective, LocalCollective
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.members import Members
from trainers.pipeline.state import whole

KINDS = "t(pb)tp"
USES = [1]


class Again(nn.Module):
    """Runs its layer as often as USES says at the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(USES[0]):
            x = torch.tanh(self.linear(x))
        return x


def fickle(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    head = nn.Linear(input_shape[0], num_classes, dtype=torch.float64)
    return nn.Sequential(Again(input_shape[0]), Again(input_shape[0]), Again(input_shape[0]), head)


@pytest.fixture(autouse=True)
def toy_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield
    USES[0] = 1


def replicated(schedule: str, **changes: Any) -> Any:
    counts = [2, 3, 2, 2] if schedule in ("zero-bubble-v", "interleaved") else [4, 5]
    plain = {"stages": 2, "schedule": schedule, "replicas": 3, "batch_size": 17, "microbatches": 2, **changes}
    return setting(KINDS, counts, **plain)


@pytest.mark.parametrize("schedule", [*SCHEDULES, "interleaved"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_leave_during_the_last_backward_and_the_bits_stay(
    schedule: str, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[tuple[int, int]] = []
    finish = Members.finish

    def noted(self: Members) -> Iterator[None]:
        gone.append((self.num_gone, len(self._part.trained) - 1))
        return finish(self)

    monkeypatch.setattr(Members, "finish", noted)
    data, states = dataset(), []
    for num_bytes in (1, 1 << 30):
        monkeypatch.setattr(members, "BUCKET_BYTES", num_bytes)
        gone.clear()
        pipeline = InlinePipeline(replicated(schedule, accumulate=accumulate), data)
        losses = [pipeline.step(number).loss for number in (1, 2, 3)]
        states.append((whole(pipeline.ranks), losses))
        expected = [(0, most) for _, most in gone[:6]] + [(most if num_bytes == 1 else 0, most) for _, most in gone[6:]]
        assert len(gone) == 18 and gone == expected
    assert same(states[0][0], states[1][0]) and states[0][1] == states[1][1]


@pytest.mark.parametrize("schedule", ["gpipe", "zero-bubble"])
def test_a_gradient_that_comes_after_its_bucket_left_is_in_the_sum(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps use layers once, then twice, then once: what was final in one step is not in the next."""
    late: list[int] = []
    take = Members._take

    def noted(self: Members) -> Iterator[None]:
        late.append(len(self._late))
        return take(self)

    monkeypatch.setattr(Members, "_take", noted)
    monkeypatch.setattr("trainers.pipeline.deferred.LARGE_BYTES", 1)
    data, states = dataset(), []
    for num_bytes in (1, 1 << 30):
        monkeypatch.setattr(members, "BUCKET_BYTES", num_bytes)
        late.clear()
        chosen = replicated(schedule, model={"target": f"{__name__}:fickle", "dtype": "float64"}, layers=(2, 2))
        pipeline = InlinePipeline(chosen, data)
        for number, uses in enumerate([1, 2, 2, 1], 1):
            USES[0] = uses
            pipeline.step(number)
        states.append(whole(pipeline.ranks))
        assert (max(late) > 0) == (num_bytes == 1)
    assert same(*states)


def test_sums_may_all_begin_before_one_is_collected() -> None:
    board: dict[tuple[str, int], dict[int, Tensor]] = {}
    ranks = [LocalCollective({"all": 2}, board, member) for member in range(2)]
    first = [ranks[0].sum("all", torch.full((1,), float(number))) for number in range(5)]
    assert not any(pending.ready() for pending in first)
    second = [ranks[1].sum("all", torch.full((1,), 10.0)) for _ in range(5)]
    assert [float(pending.result()) for pending in (*first, *second)] == [10, 11, 12, 13, 14] * 2
    assert not board


def _sum_in_a_process(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    collective = GroupCollective({"all": None}, torch.device("cpu"))
    for length in (0, 1, 7, 5000):
        parts = [torch.randn(length, generator=torch.Generator().manual_seed(each)) for each in range(size)]
        pending = [collective.sum("all", part) for part in (parts[rank].clone(), parts[rank].clone().view(1, -1))]
        want = parts[0]
        for part in parts[1:]:
            want = want + part
        assert torch.equal(pending[0].result(), want) and torch.equal(pending[1].result(), want.view(1, -1))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_add_in_the_order_of_the_ranks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_sum_in_a_process, (size, folder), size)
