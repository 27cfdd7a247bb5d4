"""What each rank of a pipeline is: its stage of a replica, with its process groups; `trainers.loop` runs it.

The last stage of the first replica speaks; every stage of that replica is drawn and holds a part of the state. Other
replicas hold one where ranges of activations are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, Unpack

import torch
import torch.distributed as dist
from torch import Tensor

from trainers import loop, wire
from trainers.activations import remembers
from trainers.data.base import Dataset
from trainers.loop import Context, Outcome, When
from trainers.pipeline.collective import GroupCollective, group_of
from trainers.pipeline.rank import Rank
from trainers.pipeline.settings import Settings
from trainers.pipeline.state import export, restore
from trainers.pipeline.transport import GroupTransport, groups_of_ways

T = TypeVar("T")


def run(
    context: Context,
    *,
    settings: Mapping[str, Any],
    dataset: Dataset,
    start: Mapping[str, Any],
    evaluate_batch: int,
    **when: Unpack[When],
) -> None:
    """Train from step `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings: of `settings.Settings`, as a mapping. start: the state to begin with, tree -> Arrow bytes.
        evaluate_batch: test examples of one micro-batch. when: see `loop.Plan`.
    """
    plain = Settings(**settings)
    rank = build(context, plain, dataset)
    restore(rank, wire.decode_trees(start), rank.replica)
    first = rank.stage if rank.replica == 0 else None
    own = remembers(plain.memory) or plain.shard_optimizer  # every replica has ranges of its own, or a share
    saves = context.rank if own else first
    plan = loop.Plan(steps=plain.steps, speaks=context.rank == plain.stages - 1, drawn=first, saves=saves, **when)
    loop.train(context, RankWork(rank, evaluate_batch), plan)


def build(context: Context, settings: Settings, dataset: Dataset) -> Rank:
    """Return this rank, with the process groups it takes part in."""
    stages, replicas = settings.stages, settings.replicas
    replica, stage = divmod(context.rank, stages)
    own = group_of(context.rank, [range(number, stages * replicas, stages) for number in range(stages)])
    ranks = range(replica * stages, (replica + 1) * stages)
    device = torch.device(context.device)
    ways = groups_of_ways(dist.get_backend())
    transport = GroupTransport(ranks, stage, device, ways)
    collective = GroupCollective({"all": None, f"stage {stage}": own}, device)
    if ways:
        transport.meet(settings.placement)
    return Rank(settings, dataset, stage, replica, transport, collective, device)


class RankWork:
    """A rank between processes, where its generators never wait by yielding.

    Args:
        evaluate_batch: test examples of one micro-batch.
    """

    ends = False

    def __init__(self, rank: Rank, evaluate_batch: int) -> None:
        self._rank, self._evaluate_batch = rank, evaluate_batch

    def step(self, number: int, stop: bool) -> Outcome:
        """As `loop.Work.step`."""
        return _last(self._rank.step(number, stop)).outcome()

    def evaluate(self, number: int) -> dict[str, float]:
        """As `loop.Work.evaluate`."""
        return _last(self._rank.evaluate(self._evaluate_batch)).values()

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """As `loop.Work.export`."""
        return export(self._rank, self._rank.replica)

    def spans_since(self, began_s: float) -> loop.Spans:
        """As `loop.Work.spans_since`."""
        return self._rank.spans_since(began_s)


def _last(generator: Iterator[T | None]) -> T:
    """Run a step through; between processes it never waits by yielding."""
    last: T | None = None
    for value in generator:
        last = value
    assert last is not None
    return last
