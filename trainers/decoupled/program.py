"""What each rank of a local-learning gang is: one worker, or one of its replicas, and its messages; `trainers.loop`
runs it.

Ranks go through the loop at their own pace: the first asks for the driver's word, the last tells what steps came to,
and all tell what they measured, are drawn, and hold a part of the state.
"""

from __future__ import annotations

from typing import Any

import torch

from strategies.local import serial
from strategies.local.base import FeedbackModule
from trainers import loop
from trainers.data.base import Dataset
from trainers.decoupled.fan import fan
from trainers.decoupled.links import Link, carried, two_examples
from trainers.decoupled.replaying import ReplayingWorker
from trainers.decoupled.settings import Settings, build
from trainers.decoupled.task import Task
from trainers.decoupled.worker import Worker
from trainers.loop import Context
from trainers.pipeline.collective import group_of
from trainers.pipeline.transport import GroupTransport, Spec


def run(context: Context, **given: Any) -> None:
    """Train from a state on to the last batch, or until the driver says `stop`.

    Args:
        given: of `task.Task`.
    """
    task = Task(**given)
    worker = make(context, task.plain, task.dataset, task.origin_s, task.begin)
    task.restore(worker)
    if isinstance(worker, ReplayingWorker) and worker.number:
        transport = GroupTransport(range(task.plain.num_workers), worker.number, torch.device(context.device))
        worker.listen(worker.link.inbox(transport))
    loop.train(context, worker, task.plan(context.rank))
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
