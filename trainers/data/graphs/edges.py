"""From a list of edges to rows of in-neighbours, with what is wrong about the list said before.

Every way of loading a graph goes through here, so that dangling ids, repeated edges and self-loops are the same to all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from trainers.data.base import DataError


class Rows(NamedTuple):
    """In-neighbours of every vertex, as in `GraphData`, and what was left out of the list, in words."""

    indptr: np.ndarray
    indices: np.ndarray
    notes: tuple[str, ...]


def in_neighbours(
    name: str,
    src: np.ndarray,
    dst: np.ndarray,
    num_vertices: int,
    *,
    undirected: bool,
    duplicates: Literal["refuse", "drop"] = "refuse",
    called: Callable[[int], object] = int,
) -> Rows:
    """Return the in-neighbours of every vertex.

    Args:
        name: the graph's, for messages.
        src, dst: edges from `src` to `dst`, as numbers of vertices.
        undirected: add the opposite of every edge. A list that has both directions already stays as it is.
        duplicates: what becomes of an edge that is listed twice in the same direction.
        called: what the user calls a vertex, for messages.

    Raises:
        DataError: on an edge to a vertex that does not exist, on repeated edges unless they are to be dropped, and
            when no edge is left.

    Shapes: `src [E]`, `dst [E]`, integers.
    """
    src, dst = np.asarray(src, np.int64), np.asarray(dst, np.int64)
    _refuse_dangling(name, src, dst, num_vertices)
    notes = []
    loops = src == dst
    if num_loops := int(loops.sum()):
        notes.append(f"{_count(num_loops, 'self-loop')} left out: layers add their own")
        src, dst = src[~loops], dst[~loops]
    if not len(src):
        raise DataError(f"graph {name} has no edges{' besides self-loops' if notes else ''}", "give its edges")
    keys = dst * num_vertices + src
    keys.sort()
    repeated = keys[1:] == keys[:-1]
    if num_repeated := int(repeated.sum()):
        if duplicates == "refuse":
            first = int(keys[1:][np.argmax(repeated)])
            raise DataError(
                f"graph {name} repeats {_count(num_repeated, 'edge')}, "
                f"such as {called(first % num_vertices)} -> {called(first // num_vertices)}",
                "remove them; from files they are left out by data.duplicates=drop",
            )
        notes.append(f"{_count(num_repeated, 'repeated edge')} left out")
        keys = _unique(keys)
    if undirected:
        dst, src = np.divmod(keys, num_vertices)
        keys = np.concatenate([keys, src * num_vertices + dst])
        del src, dst
        keys.sort()
        keys = _unique(keys)
    indptr = np.searchsorted(keys, np.arange(num_vertices + 1, dtype=np.int64) * num_vertices).astype(np.int64)
    np.remainder(keys, num_vertices, out=keys)
    return Rows(indptr, keys, tuple(notes))


def _refuse_dangling(name: str, src: np.ndarray, dst: np.ndarray, num_vertices: int) -> None:
    if len(src) != len(dst) or src.ndim != 1 or dst.ndim != 1:
        raise DataError(
            f"graph {name}: sources are {src.shape}, targets {dst.shape}", "give two lists of one length, [E] each"
        )
    if not num_vertices:
        raise DataError(f"graph {name} has no vertices", "give a row of features and a label for each")
    bad = (src < 0) | (src >= num_vertices) | (dst < 0) | (dst >= num_vertices)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"graph {name}: {_count(int(bad.sum()), 'edge')} of {len(bad)} at vertices that do not exist, the first "
            f"{src[row]} -> {dst[row]} in row {row}, with {num_vertices} vertices",
            f"vertices count from 0 to {num_vertices - 1}; add the missing ones, or remove such edges",
        )


def _unique(ordered: np.ndarray) -> np.ndarray:
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
