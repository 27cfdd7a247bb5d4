"""A directed graph as two flat arrays: of every vertex, the vertices that it aggregates from.

Left out: features and labels (`trainers.data.graphs`), weights of edges, several edges between the same two vertices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Ids = NDArray[np.integer[Any]]


class Graph(NamedTuple):
    """Vertex `v` aggregates from `indices[indptr[v]:indptr[v + 1]]`: the vertices `u` that have an edge u -> v.

    Args:
        indptr: where each vertex's list begins, and at the end the number of edges.
        indices: the lists, each ascending and without duplicates.

    Shapes: `indptr [num_vertices + 1]`, `indices [num_edges]`, both int64.
    """

    indptr: Integers
    indices: Integers

    @property
    def num_vertices(self) -> int:
        """Number of vertices, isolated ones among them."""
        return len(self.indptr) - 1

    @property
    def num_edges(self) -> int:
        """Number of directed edges: an undirected one counts twice."""
        return len(self.indices)

    def in_degrees(self) -> Integers:
        """Return of every vertex the number of vertices that it aggregates from."""
        return np.diff(self.indptr)

    def out_degrees(self) -> Integers:
        """Return of every vertex the number of vertices that aggregate from it."""
        return np.bincount(self.indices, minlength=self.num_vertices)


class Dropped(NamedTuple):
    """How many of the given edges `from_edges` leaves out."""

    num_self_loops: int
    num_duplicates: int


def from_edges(src: Ids, dst: Ids, num_vertices: int, *, undirected: bool = False) -> Graph:
    """Return the graph of the edges `src[i] -> dst[i]`, without self-loops and duplicates; `dropped` counts these.

    Self-loops are dropped since propagation adds its own, where it wants them (`propagation`, `with_self_loops`).

    Args:
        src: the vertices that are aggregated from.
        dst: the vertices that aggregate.
        num_vertices: ids count from 0 to `num_vertices - 1`; a vertex without edges is one too.
        undirected: whether every edge stands for both directions, be the other one listed or not.

    Raises:
        ValueError: when an id is not one of a vertex, ids are not whole numbers, or `src` and `dst` do not pair.
    """
    matrix = _matrix(src, dst, num_vertices)
    return _graph(matrix + matrix.T if undirected else matrix)


def dropped(src: Ids, dst: Ids, num_vertices: int) -> Dropped:
    """Return how many of the given edges are self-loops, and how many repeat an earlier one in the same direction."""
    kept = _matrix(src, dst, num_vertices).nnz
    num_self_loops = int(np.count_nonzero(np.asarray(src) == np.asarray(dst)))
    return Dropped(num_self_loops, len(src) - num_self_loops - kept)


def adjacency(graph: Graph, dtype: type[np.generic] = np.float64) -> sp.csr_matrix:
    """Return A `[num_vertices, num_vertices]`, with `A[v, u] = 1` for every edge u -> v; with bool, its pattern."""
    size = graph.num_vertices
    return sp.csr_matrix((np.ones(graph.num_edges, dtype), graph.indices, graph.indptr), shape=(size, size))


def transpose(graph: Graph) -> Graph:
    """Return the graph with every edge turned round: along it gradients travel."""
    return _graph(adjacency(graph, np.bool_).T)


def with_self_loops(graph: Graph) -> Graph:
    """Return the graph in which every vertex aggregates from itself too."""
    return _graph(adjacency(graph, np.bool_) + sp.identity(graph.num_vertices, np.bool_, format="csr"))


def is_symmetric(graph: Graph) -> bool:
    """Return whether every edge has its opposite, so that forward and backward need the same rows."""
    back = transpose(graph)
    return np.array_equal(back.indptr, graph.indptr) and np.array_equal(back.indices, graph.indices)


def permuted(graph: Graph, order: Ids) -> Graph:
    """Return the graph with its vertices renumbered: vertex `i` of it is vertex `order[i]` of `graph`.

    Raises:
        ValueError: when `order` does not hold every vertex once.
    """
    if not np.array_equal(np.sort(order), np.arange(graph.num_vertices)):
        raise ValueError(f"order must hold each of {graph.num_vertices} vertices once")
    return _graph(adjacency(graph, np.bool_)[order][:, order])


def _graph(matrix: sp.spmatrix) -> Graph:
    """Return the graph of a matrix's pattern."""
    matrix = sp.csr_matrix(matrix)
    matrix.sum_duplicates()  # sorts too
    return Graph(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64))


def _matrix(src: Ids, dst: Ids, num_vertices: int) -> sp.csr_matrix:
    """Return the pattern of checked edges, without self-loops and duplicates."""
    src, dst = np.asarray(src), np.asarray(dst)
    if num_vertices < 1:
        raise ValueError(f"a graph has at least 1 vertex, got num_vertices {num_vertices}")
    if src.ndim != 1 or src.shape != dst.shape:
        raise ValueError(f"src and dst must be two lists of the same length, got shapes {src.shape} and {dst.shape}")
    for name, ids in (("src", src), ("dst", dst)):
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{name} must hold whole numbers, got {ids.dtype}; cast it to int64")
        dangling = np.flatnonzero((ids < 0) | (ids >= num_vertices))
        if dangling.size:
            raise ValueError(
                f"{len(dangling)} edges dangle: {name}[{dangling[0]}] is {ids[dangling[0]]}, but the ids of "
                f"{num_vertices} vertices are 0 to {num_vertices - 1}; drop these edges or raise num_vertices"
            )
    kept = src != dst
    ones = np.ones(int(np.count_nonzero(kept)), np.bool_)
    return sp.csr_matrix((ones, (dst[kept], src[kept])), shape=(num_vertices, num_vertices))
