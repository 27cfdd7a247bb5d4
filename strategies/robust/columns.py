"""Order statistics of each coordinate: sorting n numbers a million times, a block of columns at a time.

Each column is the sample of its coordinate. A block is turned so that a sample lies in one piece, which numpy then
sorts with vector instructions; copying columns apart is what makes `sort` along the first axis slow. Of few vectors
(n <= 24) the samples are sorted where they lie by Batcher's merge exchange, whole rows against whole rows. Other
devices than the CPU sort by torch.

Source: Batcher 1968, "Sorting networks and their applications"; in the form of Knuth, TAOCP volume 3, algorithm 5.2.2M.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_FEW = 24
_BLOCK_BYTES = 1 << 19


def by_column(updates: Tensor, reduce: Callable[[Tensor], Tensor], rows: Tensor | None = None) -> Tensor:
    """Return `reduce` of the sorted columns, [d].

    Args:
        updates: [n, d] without NaN.
        reduce: `[n, b] -> [b]`, given the block with each of its columns ascending; the block is its to keep.
        rows: the rows to take; None for all.
    """
    num, length = updates.shape
    result = updates.new_empty(length)
    width = max(128, _BLOCK_BYTES // (num * updates.element_size()))
    for first in range(0, length, width):
        block = updates[:, first : first + width]
        block = block if rows is None else block[rows]
        result[first : first + width] = reduce(ascending(block))
    return result


def ascending(block: Tensor) -> Tensor:
    """Return a copy of a block [n, b] with each column ascending, in whatever layout was quickest."""
    if not block.is_cpu:
        return block.sort(dim=0).values
    if len(block) <= _FEW:
        return _merge_exchange(block)
    turned = block.numpy().T.copy()  # a copy always: the block may be a view that lies turned already
    turned.sort(axis=1)
    return torch.from_numpy(turned).T


def _merge_exchange(block: Tensor) -> Tensor:
    rows = list(block.numpy().copy())
    free = np.empty_like(rows[0])
    for low, high in comparators(len(rows)):
        one, other = rows[low], rows[high]
        np.minimum(one, other, out=free)
        np.maximum(one, other, out=other)
        rows[low], free = free, one
    return torch.from_numpy(np.stack(rows))


def mean_between(block: Tensor, low: int, high: int) -> Tensor:
    """Return the mean of each column's numbers `low:high` in ascending order, [b].

    Of few vectors on the CPU, only what tells those from the others is compared; they are added up in any order.

    Args:
        block: [n, b] without NaN; may be overwritten.
    """
    if not block.is_cpu or len(block) > _FEW:
        return ascending(block)[low:high].mean(0)
    rows = list(block.numpy())
    free = np.empty_like(rows[0])
    for one, other, smaller, larger in selectors(len(rows), low, high):
        if not larger:
            np.minimum(rows[one], rows[other], out=rows[one])
        elif not smaller:
            np.maximum(rows[one], rows[other], out=rows[other])
        else:
            np.minimum(rows[one], rows[other], out=free)
            np.maximum(rows[one], rows[other], out=rows[other])
            rows[one], free = free, rows[one]
    total = rows[low]
    for row in rows[low + 1 : high]:
        total += row
    total *= 1.0 / (high - low)
    return torch.from_numpy(total)


@lru_cache
def selectors(num: int, low: int, high: int) -> tuple[tuple[int, int, bool, bool], ...]:
    """Return those of `comparators` that bring the numbers `low:high` into these places, in whatever order.

    Looked at from the end: two places that are both wanted, or both not, and that nothing compares any more, need no
    comparison; and where one result is not wanted, only the other is.

    Returns:
        places to compare, and whether the smaller is wanted, and the larger.
    """
    wanted = [low <= place < high for place in range(num)]
    loose, found = [True] * num, []
    for one, other in reversed(comparators(num)):
        if loose[one] and loose[other] and wanted[one] == wanted[other]:
            continue
        if not wanted[one] and not wanted[other]:
            continue
        found.append((one, other, wanted[one], wanted[other]))
        wanted[one] = wanted[other] = True
        loose[one] = loose[other] = False
    return tuple(reversed(found))


@lru_cache
def comparators(num: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs of places to compare and exchange, in order, that sort any `num` numbers."""
    found = []
    top = 1 << max(0, (num - 1).bit_length() - 1)
    step = top
    while step > 0:
        limit, offset, distance = top, 0, step
        while True:
            found += [(i, i + distance) for i in range(num - distance) if i & step == offset]
            if limit == step:
                break
            distance, limit, offset = limit - step, limit // 2, step
        step //= 2
    return tuple(found)


def nearest_mean(ordered: Tensor, centre: Tensor, num_kept: int) -> Tensor:
    """Return the mean of the `num_kept` numbers of each column nearest to its centre; of equals, the smaller.

    The nearest numbers lie side by side, at i to i + num_kept. Sliding that window up by one drops its lowest number
    for the next one above it, and pays as long as the one above is nearer: the numbers compete in fixed pairs.
    Differences of running sums would say the same, but not beside an entry of 1e30.

    Args:
        ordered: [n, b] with ascending columns.
        centre: [b].
    """
    num = len(ordered)
    num_left_out = num - num_kept
    if not num_left_out:
        return ordered.mean(0)
    low, high = ordered[:num_left_out], ordered[num_kept:]
    slides = (centre - low) > (high - centre)
    if num_left_out <= num_kept:
        total = torch.where(slides, high, low).sum(0)
        if num_left_out < num_kept:
            total += ordered[num_left_out:num_kept].sum(0)
        return total / num_kept
    start = slides.sum(0)
    place = torch.arange(num, device=ordered.device)[:, None]
    return torch.where((place >= start) & (place < start + num_kept), ordered, 0.0).sum(0) / num_kept
