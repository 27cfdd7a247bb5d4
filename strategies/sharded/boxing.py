"""What it costs to lay a tensor out differently: bytes that all ranks together send.

    from to      OneFlow's table     by
    B -> S       0                   nothing: each rank keeps its piece
    S -> B       T (p - 1)           all-gather
    P -> S       T (p - 1)           reduce-scatter
    P -> B       2 T (p - 1)         all-reduce
    S(i) -> S(j) T (p - 1) / p       all-to-all; gloo has none: an all-gather, of which each rank keeps its piece

T is the bytes of the whole tensor, p the ranks of the axis. What goes to P costs nothing in bytes and is not offered:
OneFlow penalises it, and DTensor refuses it.

Source: OneFlow (arXiv:2110.15032), table 2; `sbp_infer_util.cpp` of its repository, which counts B -> S as 1 to prefer
no boxing at all. Several axes: each changes its own entry; the groups of an axis move what the others left them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from strategies.sharded.placements import Broadcast, Partial, Placement, Split


def collective(source: Placement, target: Placement) -> str:
    """Return the collective that changes one placement into another; empty where none is needed.

    Raises:
        ValueError: for what cannot become a sum.
    """
    if source == target:
        return ""
    if isinstance(target, Partial):
        raise ValueError(f"a tensor that is {source} is not laid out as a sum: whoever adds it up would count it twice")
    if isinstance(source, Broadcast):
        return ""
    if isinstance(source, Partial):
        return "all-reduce" if isinstance(target, Broadcast) else "reduce-scatter"
    return "all-gather" if isinstance(target, Broadcast) else "all-to-all"


def table_bytes(source: Placement, target: Placement, num_bytes: float, ranks: int) -> float:
    """Return what a change costs by OneFlow's table.

    Args:
        num_bytes: of the whole tensor. ranks: of the axis.
    """
    by = collective(source, target)
    return moved_bytes(by, num_bytes, ranks) if by else 0.0


def gloo_bytes(source: Placement, target: Placement, num_bytes: float, ranks: int) -> float:
    """Return what a change costs as DTensor does it on gloo: the table, but that no tensor goes from all to all."""
    by = collective(source, target)
    return moved_bytes("all-gather" if by == "all-to-all" else by, num_bytes, ranks) if by else 0.0


def moved_bytes(by: str, num_bytes: float, ranks: int) -> float:
    """Return what a collective costs whose result, or for sums whose addend, has `num_bytes` in all."""
    if by == "all-reduce":
        return 2 * num_bytes * (ranks - 1)
    if by == "all-to-all":
        return num_bytes * (ranks - 1) / ranks
    return num_bytes * (ranks - 1)


def mesh_bytes(
    source: Sequence[Placement],
    target: Sequence[Placement],
    num_bytes: float,
    mesh: Sequence[int],
    *,
    gloo: bool = False,
) -> float:
    """Return what a change on a mesh costs, one entry an axis, changed from the last axis to the first.

    Shapes: source, target and mesh are equally long.
    """
    count = gloo_bytes if gloo else table_bytes
    now, total = list(source), 0.0
    for axis in reversed(range(len(mesh))):
        others = [place for place in range(len(mesh)) if place != axis]
        groups = math.prod(mesh[place] for place in others)
        held = num_bytes / math.prod(mesh[place] for place in others if isinstance(now[place], Split))
        total += groups * count(now[axis], target[axis], held, mesh[axis])
        now[axis] = target[axis]
    return total
