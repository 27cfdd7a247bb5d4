"""The fixed matrices that graph layers aggregate with: row `v` says with which weights vertex `v` sums whose rows.

Left out: weights that are learned or depend on features, as in attention, and weighted edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import scipy.sparse as sp

from strategies.graph.structure import Graph, adjacency, with_self_loops


def propagation(graph: Graph, kind: str) -> sp.csr_matrix:
    """Return the matrix P of an aggregation `P @ X`, float64 `[num_vertices, num_vertices]`, columns ascending.

    Args:
        graph: with or without self-loops; A below, whose entry `[v, u]` is 1 for an edge u -> v.
        kind: `gcn`, `mean` or `sum`, see each.

    Raises:
        ValueError: when there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"no propagation {kind!r}; there are {', '.join(KINDS)}")
    return KINDS[kind](graph)


def gcn(graph: Graph) -> sp.csr_matrix:
    """Return `D^-1/2 (A + I) D^-1/2`, with D the row sums of A + I.

    Vertices that have a self-loop already keep the one. D counts in-edges on both sides, so on a directed graph P is
    not A's transpose scaled by out-degrees; this is what `torch_geometric.nn.conv.gcn_conv.gcn_norm` does.

    Source: Kipf and Welling, "Semi-Supervised Classification with Graph Convolutional Networks", ICLR 2017
    (arXiv:1609.02907), eq. 2 and its renormalisation after eq. 8; defined there for undirected graphs.
    """
    looped = adjacency(with_self_loops(graph))
    scale = 1.0 / np.sqrt(np.diff(looped.indptr))
    looped.data = np.repeat(scale, np.diff(looped.indptr)) * scale[looped.indices]
    return looped


def mean(graph: Graph) -> sp.csr_matrix:
    """Return `D^-1 A` with D the in-degrees: the mean of the in-neighbours, and zero for a vertex without any.

    Source: Hamilton, Ying, Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017
    (arXiv:1706.02216), Algorithm 1 line 4 with the mean aggregator, over all neighbours instead of a sample. A
    vertex's own row is left to the layer.
    """
    matrix = adjacency(graph)
    degrees = graph.in_degrees()
    matrix.data = np.repeat(1.0 / np.maximum(degrees, 1), degrees)
    return matrix


KINDS: Mapping[str, Callable[[Graph], sp.csr_matrix]] = {"gcn": gcn, "mean": mean, "sum": adjacency}
"""Every kind of propagation by its name; `sum` is A itself."""
