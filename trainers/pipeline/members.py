"""What copies of one stage add up after a batch: gradients, and the statistics of batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from trainers.optimizers import aligned
from trainers.pipeline.batchnorm import combine
from trainers.pipeline.collective import Collective, Pending
from trainers.pipeline.part import Part


def add_up(part: Part[Any], member: int, size: int, collective: Collective, group: str) -> Iterator[None]:
    """Give each parameter the sum of its gradients over a stage's members, and commit the batch's statistics.

    Yields while it would wait for a rank of the same process.

    Args:
        member: of `size`. group: its name in `collective`.
    """
    norms = [norm for chunk in part.chunks for norm in chunk.norms]
    statistics = [norm.statistics() for norm in norms]
    if size > 1:
        trained = part.trained
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        pending: list[Pending] = []
        if trained:
            flat = torch.cat([parameter.grad.flatten() for parameter in trained if parameter.grad is not None])
            pending.append(collective.sum(group, flat))
        if statistics:
            rows = torch.zeros(size, sum(map(len, statistics)), dtype=torch.float64)
            rows[member] = torch.cat(statistics).cpu()
            pending.append(collective.sum(group, rows))
        for work in pending:
            while not work.ready():
                yield None
        if trained:
            summed = pending[0].result().split([parameter.numel() for parameter in trained])
            for parameter, gradient in zip(trained, summed, strict=True):
                parameter.grad = aligned(gradient.view_as(parameter), parameter)
        if statistics:
            columns = pending[-1].result().split([len(one) for one in statistics], dim=1)
            statistics = [combine(list(rows)) for rows in columns]
    for norm, total in zip(norms, statistics, strict=True):
        norm.commit(total.to(norm.layer.running_mean.device))
