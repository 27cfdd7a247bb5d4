"""What each rank of a graph pipeline is: some layers on some vertices, and its process groups; for `trainers.loop`.

Rank `ways * stage + way`. The last stage of the first way speaks; all ranks are drawn, and all hold a part of the
state, since each way has its own history.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch

from strategies.graph.layout import Layout
from trainers import loop, wire
from trainers.data.graphs.base import GraphData
from trainers.data.graphs.store import open_store
from trainers.graph.rank import GraphRank
from trainers.graph.settings import Settings
from trainers.loop import Context, When
from trainers.pipeline.collective import GroupCollective, group_of
from trainers.pipeline.transport import GroupTransport


def run(
    context: Context,
    *,
    settings: Mapping[str, Any],
    data: GraphData | str,
    layout: Layout,
    start: Mapping[str, Any],
    **when: Unpack[When],
) -> None:
    """Train from epoch `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings: of `settings.Settings`, as a mapping. data: the graph, or the folder that holds it.
        layout: who has which vertices.
        start: the state to begin with, tree -> Arrow bytes.
        when: see `loop.Plan`; its steps are epochs.
    """
    plain = Settings(**settings)
    graph = open_store(Path(data), verify=False) if isinstance(data, str) else data
    rank = build(context, plain, graph, layout)
    rank.restore(wire.decode_trees(start))
    number, speaks = context.rank, context.rank == plain.ways * (plain.stages - 1)
    loop.train(context, rank, loop.Plan(steps=plain.epochs, speaks=speaks, drawn=number, saves=number, **when))


def build(context: Context, settings: Settings, data: GraphData, cut: Layout) -> GraphRank:
    """Return this rank, with the process groups it takes part in."""
    stages, ways = settings.stages, settings.ways
    stage, way = divmod(context.rank, ways)
    of_stages = [range(number * ways, (number + 1) * ways) for number in range(stages)]
    own = group_of(context.rank, of_stages)
    device = torch.device(context.device)
    between = GroupTransport(range(way, stages * ways, ways), stage, device)
    among = GroupTransport(of_stages[stage], way, device) if ways > 1 else None
    collective = GroupCollective({"all": None, f"stage {stage}": own}, device)
    return GraphRank(settings, data, cut, stage, way, between, among, collective, device)
