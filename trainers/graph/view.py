"""What a layer may ask of a graph, and the plain answer: the whole graph in one process.

A layer sees the rows of some vertices, its *own*, and asks a `View` to sum over their neighbours, wherever those are.
So the same layer runs on the whole graph, on a chunk of it, and with neighbours in other processes, and everything
that is distributed is held against `FullView`.

Left out: chunks, embeddings of earlier epochs and exchange, which are other views; sampling of neighbours.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import scipy.sparse as sp
import torch
from torch import Tensor

from strategies.graph import Graph, propagation
from trainers.graph.kernels import Matrix


class View(Protocol):
    """The part of a graph that a layer is run on: n own vertices, and whatever they aggregate from.

    A layer asks the same things in the same order every time it is run, so that a view can number what it is asked.
    """

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        """Return for each own vertex the weighted sum over its in-neighbours.

        Args:
            x: rows of the own vertices; a view knows where to find those of the others.
            kind: which weights: a name of `strategies.graph.propagation`, `gcn`, `mean` or `sum`.

        Shapes: `x [n, H]`, result `[n, H]`.
        """
        ...

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        """Return the rows of all vertices that the own ones aggregate from, and the edges between the two.

        Args:
            x: rows of the own vertices.
            self_loops: whether every vertex also aggregates from itself.

        Returns:
            `rows` and `edge_index`: edge e goes from row `edge_index[0, e]` of `rows` to own vertex `edge_index[1, e]`.
            Edges are ordered by target, and those of a target as the propagation matrix orders its entries.

        Shapes: `x [n, H]`, `rows [m, H]`, `edge_index [2, num_edges]` int64.
        """
        ...


class FullView:
    """The whole graph in one process, with plain autograd; matrices are made when first asked for.

    Args:
        kernel: of `trainers.graph.kernels`.
        dtype, device: of the rows that layers will pass.

    Raises:
        ValueError: for a kernel, dtype or device that `Matrix` refuses, when first asked.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        kernel: str = "auto",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_vertices = graph.num_vertices
        self._graph = graph
        self._options: dict[str, Any] = {"kernel": kernel, "dtype": dtype, "device": device}
        self._pair = cache(self._make_pair)
        self._edges = cache(self._make_edges)

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        """As `View.propagate`; every vertex is own."""
        return aggregate(x, *self._pair(kind))

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        """As `View.sources`; the rows are `x` itself."""
        return x, self._edges(self_loops)

    def _make_pair(self, kind: str) -> tuple[Matrix, Matrix]:
        matrix = propagation(self._graph, kind)
        forward = Matrix(matrix, **self._options)
        turned = matrix.T.tocsr()
        return forward, forward if _same(matrix, turned) else Matrix(turned, **self._options)

    def _make_edges(self, self_loops: bool) -> Tensor:
        return edge_index(propagation(self._graph, pattern(self_loops)), self._options["device"])


def pattern(self_loops: bool) -> str:
    """Return the kind of propagation whose matrix has the edges that `sources` tells of."""
    return "gcn" if self_loops else "sum"


def edge_index(matrix: sp.csr_matrix, device: torch.device | str = "cpu") -> Tensor:
    """Return the entries of a matrix, row by row and in their order, as (column, row) pairs `[2, entries]`."""
    counts = torch.from_numpy(matrix.indptr).long().diff()
    targets = torch.repeat_interleave(torch.arange(matrix.shape[0]), counts)
    return torch.stack((torch.from_numpy(matrix.indices).long(), targets)).to(device)


def aggregate(x: Tensor, forward: Matrix, backward: Matrix) -> Tensor:
    """Return `forward` times `x`, with autograd, for which `backward` is the transpose of `forward`.

    A transpose kept costs its memory once; turning the matrix round in every backward pass would cost more time than
    the product. Backward of backward is not offered.
    """
    return _Aggregate.apply(x, forward, backward)


class _Aggregate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: Matrix, backward: Matrix) -> Tensor:
        ctx.transposed = backward
        return forward.multiply(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed.multiply(gradient), None, None


def _same(one: sp.csr_matrix, other: sp.csr_matrix) -> bool:
    return all(
        (a == b).all() for a, b in ((one.indptr, other.indptr), (one.indices, other.indices), (one.data, other.data))
    )
