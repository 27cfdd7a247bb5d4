"""What each rank of a sharded run is: its pieces on the mesh; `trainers.loop` runs it.

The first rank speaks and measures; every rank is drawn and holds a share of the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch

from trainers import loop, wire
from trainers.data.base import Dataset
from trainers.loop import Context, When
from trainers.sharded.layout import OnMesh
from trainers.sharded.rank import Rank
from trainers.sharded.settings import Settings


def run(
    context: Context,
    *,
    settings: Mapping[str, Any],
    dataset: Dataset,
    start: Mapping[str, Any],
    **when: Unpack[When],
) -> None:
    """Train from step `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings: of `settings.Settings`, as a mapping. start: the state to begin with, tree -> Arrow bytes.
        when: see `loop.Plan`.
    """
    rank = build(context, Settings(**settings), dataset)
    rank.restore(wire.decode_trees(start))
    number = context.rank
    plan = loop.Plan(steps=rank.settings.steps, speaks=number == 0, drawn=number, saves=number, **when)
    loop.train(context, rank, plan)


def build(context: Context, settings: Settings, dataset: Dataset) -> Rank:
    """Return this rank, on the mesh of all."""
    from torch.distributed.device_mesh import init_device_mesh

    device = torch.device(context.device)
    mesh = init_device_mesh(device.type, settings.mesh)
    return Rank(settings, dataset, context.rank, OnMesh(settings, mesh), device)
