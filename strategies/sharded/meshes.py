"""Meshes of several axes: each is planned on what the axes before have left of every tensor.

Source: OneFlow (arXiv:2110.15032), section 3.1, hierarchical (n-d) SBP: one entry an axis. That axes are planned one
after the other, not all together, is this project's way; the bytes are then counted with all of them in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from strategies.sharded.graph import Graph, shard
from strategies.sharded.placements import BROADCAST, Placement
from strategies.sharded.planning import Assignment, price

Solve = Callable[[Graph, int], Assignment]


class MeshAssignment(NamedTuple):
    """A signature an axis for every operator.

    Args:
        axes: what was chosen for each. placements: of parameters and data, one entry an axis.
        sent_bytes, sum_bytes, rank_bytes: as of `Assignment`. axis_bytes: what each axis sends.
    """

    axes: tuple[Assignment, ...]
    placements: Mapping[str, tuple[Placement, ...]]
    sent_bytes: float
    sum_bytes: float
    axis_bytes: tuple[float, ...]
    rank_bytes: float


def plan_mesh(graph: Graph, mesh: Sequence[int], solve: Solve, *, copies: float = 4.0) -> MeshAssignment:
    """Return the assignment of each axis in turn.

    Args:
        solve: called with what a rank computes so far, and the axis's number; it is `exact` or `greedy`.
        copies: as of `exact`.
    """
    chosen: list[Assignment] = []
    left = graph
    for axis, ranks in enumerate(mesh):
        chosen.append(solve(left, axis))
        left = shard(left, chosen[-1].signatures, ranks)
    axis_bytes, sum_bytes, rank_bytes = [], 0.0, 0.0
    for axis, ranks in enumerate(mesh):
        others = graph
        for other, assignment in enumerate(chosen):
            if other != axis:
                others = shard(others, assignment.signatures, mesh[other])
        groups = math.prod(mesh) // ranks
        priced = price(others, ranks, chosen[axis].signatures, chosen[axis].placements, copies=copies)
        axis_bytes.append(groups * priced.sent_bytes)
        sum_bytes += groups * priced.sum_bytes
        rank_bytes = priced.rank_bytes
    names = {name for assignment in chosen for name in assignment.placements}
    placements = {name: tuple(a.placements.get(name, BROADCAST) for a in chosen) for name in sorted(names)}
    return MeshAssignment(tuple(chosen), placements, sum(axis_bytes), sum_bytes, tuple(axis_bytes), rank_bytes)
