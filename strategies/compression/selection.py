"""Which elements of a tensor are the largest by magnitude, without sorting it.

The bits of a non-negative IEEE number grow with the number, so magnitudes are compared as unsigned integers, which
numpy partitions several times faster than floats.
"""

from __future__ import annotations

import numpy as np

from strategies.compression.base import Array


def magnitudes(values: Array) -> Array:
    """Return for float32 or float64 values unsigned integers in the order of their magnitudes; 0 for zero."""
    if values.dtype == np.float32:
        return np.asarray(values.view(np.uint32) & np.uint32(0x7FFFFFFF))
    return np.asarray(values.view(np.uint64) & np.uint64(0x7FFFFFFFFFFFFFFF))


def count_kept(keep: float, size: int) -> int:
    """Return how many of `size` elements a fraction keeps: at least one, unless there are none."""
    return min(max(1, round(keep * size)), size)


def threshold(keys: Array, count: int) -> int:
    """Return the smallest of the `count` largest keys; 1 <= count <= size."""
    if count == keys.size:
        return int(keys.min())
    return int(np.partition(keys, keys.size - count)[keys.size - count])


def with_ties(values: Array, count: int) -> Array:
    """Return the ascending places of the `count` largest magnitudes and of all that tie with the last; zeros never."""
    keys = magnitudes(values)
    if count == values.size:
        return np.flatnonzero(keys)
    return np.flatnonzero(keys >= max(threshold(keys, count), 1))


def exactly(values: Array, count: int) -> Array:
    """Return the ascending places of the `count` largest magnitudes; of a tie the first ones."""
    keys = magnitudes(values)
    lowest = threshold(keys, count)
    sure = np.flatnonzero(keys > lowest)
    tied = np.flatnonzero(keys == lowest)[: count - sure.size]
    places: Array = np.sort(np.concatenate([sure, tied])) if tied.size else sure
    return places
