"""What each rank of a local-learning gang is: one worker, or one of its replicas, and its messages; `trainers.loop`
runs it.

Ranks go through the loop at their own pace: the first asks for the driver's word, the last tells what steps came to,
and all tell what they measured, are drawn, and hold a part of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from strategies.local import serial
from strategies.local.base import FeedbackModule
from trainers import loop, wire
from trainers.data.base import Dataset
from trainers.decoupled.fan import fan
from trainers.decoupled.links import Link, carried, two_examples
from trainers.decoupled.replaying import ReplayingWorker
from trainers.decoupled.settings import Settings, build
from trainers.decoupled.worker import Worker
from trainers.loop import Context
from trainers.pipeline.collective import group_of
from trainers.pipeline.transport import GroupTransport, Spec


def run(
    context: Context,
    *,
    settings: Mapping[str, Any],
    dataset: Dataset,
    origin_s: float,
    start: Mapping[str, Any],
    begin: int,
    evaluate_every: int,
    checkpoint_every: int,
) -> None:
    """Train from batch `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings: of `settings.Settings`, as a mapping. origin_s: what time lines count from, as of `time.time`.
        start: the state to begin with, tree -> Arrow bytes.
        evaluate_every, checkpoint_every: in steps; both also after the last.
    """
    plain = Settings(**settings)
    worker = make(context, plain, dataset, origin_s, begin)
    worker.restore({tree: wire.decode(payload) for tree, payload in start.items()})
    if isinstance(worker, ReplayingWorker) and worker.number:
        transport = GroupTransport(range(plain.num_workers), worker.number, torch.device(context.device))
        worker.listen(worker.link.inbox(transport))
    number, replica = plain.places()[context.rank]
    plan = loop.Plan(
        begin,
        plain.steps,
        evaluate_every,
        checkpoint_every,
        speaks=replica == 0 and number == plain.num_workers - 1,
        drawn=None if replica else number,
        saves=None if replica else number,
        measures=replica == 0,
        asks=context.rank == 0,
    )
    loop.train(context, worker, plan)
    worker.link.flush()


def make(context: Context, settings: Settings, dataset: Dataset, origin_s: float, begin: int = 0) -> Worker:
    """Return this rank's worker. What it will receive it finds by trying the modules before its own."""
    places = settings.places()
    (number, replica), device = places[context.rank], torch.device(context.device)
    built = build(settings, dataset)
    incoming = None
    if number:
        dtype = getattr(torch, settings.model["dtype"])
        before = built.modules[: settings.owned(number).start]
        incoming = carried(before, built.rule, *two_examples(dataset, dtype), dataset.num_classes)
    if settings.replicas:
        of_workers = [[r for r, (of, _) in enumerate(places) if of == each] for each in range(settings.num_workers)]
        group, link = group_of(context.rank, of_workers), fan(settings, number, replica, incoming, device)
        return Worker(settings, dataset, built, number, link, device, origin_s=origin_s, replica=replica, group=group)
    transport = GroupTransport(range(settings.num_workers), number, device, in_flight=1)
    feedback = None
    if number + 1 < settings.num_workers and isinstance(built.modules[-1], FeedbackModule):
        c = serial.descend(built.modules, dataset.num_classes)[settings.owned(number + 1).start]
        feedback = Spec("c", tuple(c.shape), c.dtype)
    link = Link(transport, number, incoming, settings.queue, counts=True, feedback=feedback)
    if settings.regime == "asynchronous":
        return ReplayingWorker(settings, dataset, built, number, link, device, origin_s=origin_s, begin=begin)
    return Worker(settings, dataset, built, number, link, device, origin_s=origin_s)
