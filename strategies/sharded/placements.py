"""How a tensor lies on the ranks of one mesh axis: split along a dimension, copied to all, or a sum not yet added up.

Source: OneFlow (arXiv:2110.15032), section 3.1, "SBP": S(i), B and P. `Split.parts` is not in the paper: the rows of a
fused projection of queries, keys and values are three matrices one behind the other, and splitting it by heads splits
each of the three. torch's DTensor has that as a strided shard.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple


class Split(NamedTuple):
    """Rank r holds the r-th piece of a dimension.

    Args:
        dim: which, from 0. parts: the dimension is so many parts one behind the other, and each is split.
    """

    dim: int
    parts: int = 1


class Broadcast(NamedTuple):
    """Every rank holds all of it."""

    kind: str = "B"


class Partial(NamedTuple):
    """Every rank holds a tensor of the whole shape, and the sum of all is meant."""

    kind: str = "P"


Placement = Split | Broadcast | Partial
BROADCAST = Broadcast()
PARTIAL = Partial()

_SPLIT = re.compile(r"S\(\s*(\d+)\s*(?:/\s*(\d+)\s*)?\)")


def parse(text: str) -> Placement:
    """Return the placement that `S(0)`, `S(0/3)`, `B` or `P` spells.

    Raises:
        ValueError: for anything else.
    """
    asked = text.strip()
    if asked in ("B", "P"):
        return BROADCAST if asked == "B" else PARTIAL
    found = _SPLIT.fullmatch(asked)
    if found is None or found[2] == "0":
        raise ValueError(f"{text!r} is no placement; expected S(0), S(1), ..., S(0/3) for three parts, or B")
    return Split(int(found[1]), int(found[2] or 1))


def show(placement: Placement) -> str:
    """Return a placement as `parse` reads it."""
    if not isinstance(placement, Split):
        return placement.kind
    return f"S({placement.dim})" if placement.parts == 1 else f"S({placement.dim}/{placement.parts})"


def dual(placement: Placement) -> Placement:
    """Return how the gradient of a tensor lies that every consumer reads in this placement, if it lies well.

    A sum's gradient is the same on every rank: each addend has it.
    """
    return placement if isinstance(placement, Split) else BROADCAST


def local_shape(shape: tuple[int, ...], placement: Placement, ranks: int) -> tuple[int, ...]:
    """Return the largest shape that a rank holds: where pieces are uneven, the first rank's."""
    if not isinstance(placement, Split):
        return shape
    dim, parts = placement
    each = placement.parts * math.ceil(shape[dim] / parts / ranks)
    return (*shape[:dim], each, *shape[dim + 1 :])
