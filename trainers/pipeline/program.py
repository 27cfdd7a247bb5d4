"""What each rank of a gang runs: its stage of the pipeline, step by step, with reports to the driver.

    every step         the last stage of the first replica reports the loss and what the step took
    evaluations        the same rank reports loss and accuracy; every rank of the first replica its time line
    checkpoints        every rank of the first replica reports its part of the state, as Arrow bytes
    a wish to stop     comes as the answer to a report, and reaches every rank with the next step's sums

The driver is told; it decides nothing between steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from trainers import wire
from trainers.data.base import Dataset
from trainers.pipeline.collective import GroupCollective
from trainers.pipeline.rank import Rank
from trainers.pipeline.settings import Settings
from trainers.pipeline.state import export, restore
from trainers.pipeline.transport import GroupTransport, groups_of_ways

T = TypeVar("T")


class Context(Protocol):
    """What a gang gives each rank."""

    rank: int
    world_size: int
    device: str

    def report(self, payload: Any) -> str:
        """Send something to the driver; return its latest word."""
        ...


def run(
    context: Context,
    *,
    settings: Mapping[str, Any],
    dataset: Dataset,
    start: Mapping[str, Any],
    begin: int,
    evaluate_every: int,
    evaluate_batch: int,
    checkpoint_every: int,
) -> None:
    """Train from step `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings: of `settings.Settings`, as a mapping. start: the state to begin with, tree -> Arrow bytes.
        evaluate_every, checkpoint_every: in steps; both also after the last.
    """
    plain = Settings(**settings)
    rank = build(context, plain, dataset)
    restore(rank, {tree: wire.decode(payload) for tree, payload in start.items()})
    speaks = context.rank == plain.stages - 1
    word = ""
    if begin == 0:
        _report_evaluation(context, rank, 0, evaluate_batch, speaks)
    for step in range(begin + 1, plain.steps + 1):
        began = time.perf_counter()
        result = _last(rank.step(step, stop=speaks and word == "stop"))
        seconds = time.perf_counter() - began
        if speaks:
            payload = {"kind": "step", "step": step, "loss": result.loss, "norm": result.norm, "step_s": seconds}
            payload |= {"sent_bytes": result.sent_bytes, "ends": step == plain.steps or result.stop}
            word = context.report(payload) or word
        ends = step == plain.steps or result.stop
        if ends or step % evaluate_every == 0:
            _report_evaluation(context, rank, step, evaluate_batch, speaks)
            if rank.replica == 0:
                spans = rank.spans_since(began)
                context.report({"kind": "spans", "step": step, "stage": rank.stage, "spans": spans})
        if (ends or step % checkpoint_every == 0) and rank.replica == 0:
            trees = {tree: wire.encode(tensors) for tree, tensors in export(rank).items() if tensors}
            context.report({"kind": "state", "step": step, "stage": rank.stage, "trees": trees})
        if result.stop:
            return


def build(context: Context, settings: Settings, dataset: Dataset) -> Rank:
    """Return this rank, with the process groups it takes part in."""
    stages, replicas = settings.stages, settings.replicas
    replica, stage = divmod(context.rank, stages)
    groups: dict[str, dist.ProcessGroup | None] = {"all": None}
    for number in range(stages):  # every rank makes every group, in the same order
        group = dist.new_group([r * stages + number for r in range(replicas)]) if replicas > 1 else None
        if number == stage:
            groups[f"stage {stage}"] = group
    ranks = [replica * stages + number for number in range(stages)]
    device = torch.device(context.device)
    ways = groups_of_ways(dist.get_backend())
    transport = GroupTransport(ranks, stage, device, ways)
    if ways:
        transport.meet(settings.placement)
    return Rank(settings, dataset, stage, replica, transport, GroupCollective(groups, device), device)


def _report_evaluation(context: Context, rank: Rank, step: int, batch_size: int, speaks: bool) -> None:
    began = time.perf_counter()
    result = _last(rank.evaluate(batch_size))
    if speaks:
        seconds = time.perf_counter() - began
        payload = {"kind": "evaluation", "step": step, "loss": result.loss, "accuracy": result.accuracy}
        context.report({**payload, "evaluate_s": seconds})


def _last(generator: Iterator[T | None]) -> T:
    """Run a step through; between processes it never waits by yielding."""
    last: T | None = None
    for value in generator:
        last = value
    assert last is not None
    return last
