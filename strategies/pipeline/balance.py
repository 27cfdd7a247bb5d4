"""Where to cut a chain of layers into stages, so that the slowest stage, which sets the pipeline's pace, is fastest.

The result is exact: costs are compared as whole numbers (every float is a fraction of a power of two), never rounded.
Left out: measuring the costs; limits on what several pieces on one rank hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from itertools import accumulate, pairwise
from math import isfinite, lcm
from numbers import Rational
from operator import add
from typing import Any


def balance(
    costs: Sequence[float],
    num_stages: int,
    *,
    memory: Sequence[float] | None = None,
    limit: float | Sequence[float] | None = None,
    cuts: Collection[int] | None = None,
) -> list[int]:
    """Return the number of layers of each stage that makes the most expensive stage cheapest.

    Ties: of all such partitions the one with the smallest sum of squared stage costs, which is the smallest variance;
    of those still equal the lexicographically smallest list, so that earlier stages get fewer layers.

    Args:
        costs: of each layer, in any unit; at least 0.
        memory: bytes of each layer; with it goes `limit`, the bytes of any stage, or one number a stage.
        cuts: the layers after which a cut is allowed; None allows it after every one.

    Raises:
        ValueError: when no partition has a layer for every stage, or none fits; with the numbers.

    Source: GPipe (arXiv:1811.06965) section 2.2 minimises the variance of the stages' costs by a heuristic, torchgpipe
    the largest stage by Bárány's block partition. Here a dynamic program finds first the smallest largest stage, then
    the smallest variance under it, in O(num_stages * n^2) for n layers.
    """
    blocks = _blocks(len(costs), num_stages, cuts)
    whole = _exact("costs", costs)
    load = _prefix([sum(whole[start:end]) for start, end in blocks])
    fits = _limits(memory, limit, blocks, num_stages)
    largest = _search(load, num_stages, fits, 1, max)
    if largest is None:
        raise ValueError(_does_not_fit(memory or (), limit, blocks, num_stages))
    bound = max(load[end] - load[start] for start, end in largest)
    chosen = _search(load, num_stages, lambda s, i, j: load[j] - load[i] <= bound and fits(s, i, j), 2, add)
    assert chosen is not None, "the partition that gave the bound is under it"
    return [blocks[end - 1][1] - blocks[start][0] for start, end in chosen]


Fits = Callable[[int, int, int], bool]  # stage, first block, end of its blocks; what has more blocks fits less


def _search(
    load: Sequence[int], num_stages: int, fits: Fits, power: int, join: Callable[[int, int], int]
) -> list[tuple[int, int]] | None:
    """Return the first and end block of each stage that minimise the stages' costs to `power`, joined by max or sum."""
    num_blocks = len(load) - 1
    rest: list[int | None] = [None] * num_blocks + [0]  # of each start, the best that the later stages can do
    ends: list[list[int]] = []
    for stage in reversed(range(num_stages)):
        best_of: list[int | None] = [None] * (num_blocks + 1)
        end_of = [0] * (num_blocks + 1)
        for start in range(stage, num_blocks):
            best: int | None = None
            for end in range(start + 1, num_blocks + 1):
                own = (load[end] - load[start]) ** power
                if not fits(stage, start, end) or (best is not None and own >= best):
                    break  # longer stages cost more
                later = rest[end]
                if later is not None and (best is None or join(own, later) < best):
                    best, end_of[start] = join(own, later), end
            best_of[start] = best
        rest = best_of
        ends.append(end_of)
    if rest[0] is None:
        return None
    found, start = [], 0
    for end_of in reversed(ends):
        found.append((start, end_of[start]))
        start = end_of[start]
    return found


def _blocks(num_layers: int, num_stages: int, cuts: Collection[int] | None) -> list[tuple[int, int]]:
    """Return the first and end layer of the runs of layers that stay together."""
    if num_stages < 1:
        raise ValueError(f"num_stages must be at least 1, got {num_stages}")
    if num_layers < num_stages:
        raise ValueError(f"{num_layers} layers cannot make {num_stages} stages of at least 1; use fewer stages")
    allowed = sorted(range(num_layers - 1) if cuts is None else set(cuts))
    if allowed and not 0 <= allowed[0] <= allowed[-1] < num_layers - 1:
        raise ValueError(f"cuts must be from 0 to {num_layers - 2} for {num_layers} layers, got {allowed}")
    if len(allowed) + 1 < num_stages:
        raise ValueError(
            f"{num_stages} stages need {num_stages - 1} cuts, but only {len(allowed)} are possible, after layers "
            f"{allowed}; use at most {len(allowed) + 1} stages"
        )
    return list(zip([0, *(cut + 1 for cut in allowed)], [*(cut + 1 for cut in allowed), num_layers], strict=True))


def _exact(name: str, values: Sequence[float]) -> list[int]:
    """Return numbers as whole numbers in the same proportions."""
    for index, value in enumerate(values):
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {value} for layer {index}")
    exact = [_fraction(value) for value in values]
    unit = lcm(*(value.denominator for value in exact))
    return [value.numerator * (unit // value.denominator) for value in exact]


def _fraction(value: Any) -> Fraction:
    return Fraction(value if isinstance(value, Rational) else float(value))


def _prefix(values: Sequence[Any]) -> list[Any]:
    return [0, *accumulate(values)]


def _limits(
    memory: Sequence[float] | None,
    limit: float | Sequence[float] | None,
    blocks: list[tuple[int, int]],
    num_stages: int,
) -> Fits:
    if (memory is None) != (limit is None):
        raise ValueError("memory and limit go together: give the bytes of each layer and the bytes of a stage")
    if memory is None or limit is None:
        return lambda stage, start, end: True
    if len(memory) != blocks[-1][1]:
        raise ValueError(f"memory needs one number for each of {blocks[-1][1]} layers, got {len(memory)}")
    _exact("memory", memory)  # checks only
    room = _room(limit, num_stages)
    held = _prefix([sum((_fraction(value) for value in memory[start:end]), Fraction()) for start, end in blocks])
    return lambda stage, start, end: bool(held[end] - held[start] <= room[stage])


def _room(limit: float | Sequence[float], num_stages: int) -> list[float]:
    room = list(limit) if isinstance(limit, Sequence) else [limit] * num_stages
    if len(room) != num_stages:
        raise ValueError(f"limit needs one number, or one for each of {num_stages} stages, got {len(room)}")
    return room


def _does_not_fit(
    memory: Sequence[float], limit: float | Sequence[float] | None, blocks: list[tuple[int, int]], num_stages: int
) -> str:
    assert limit is not None, "without a limit there always is a partition"
    room = _room(limit, num_stages)
    for start, end in blocks:
        if sum(memory[start:end]) > max(room):
            which = f"layer {start} needs" if end == start + 1 else f"layers {start} to {end - 1}, never cut, need"
            return f"{which} {sum(memory[start:end])} bytes, but a stage has at most {max(room)}"
    least = balance(memory, num_stages, cuts=[end - 1 for _, end in blocks[:-1]])
    ends = _prefix(least)
    most = max(sum(memory[start:end]) for start, end in pairwise(ends))
    return (
        f"{len(memory)} layers of {sum(memory)} bytes do not fit {num_stages} stages of {room} bytes, together "
        f"{sum(room)}; cut as evenly as they can be, the largest stage needs {most}; raise the limit or use more stages"
    )
