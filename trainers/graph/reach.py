"""What one way reads of the graph: its vertices, those of others that they aggregate from, and the sparse products.

Built once from the whole structure, which every rank maps into memory; only a way's own share is then kept.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from strategies.graph.layout import Layout
from strategies.graph.propagation import propagation
from strategies.graph.share import Share, share
from strategies.graph.structure import Graph, is_symmetric
from trainers.graph.kernels import Matrix
from trainers.graph.view import pattern


class Sheets(NamedTuple):
    """A way's share of one matrix, ready to multiply.

    Args:
        products: one a slot. sends: for each way and slot, the rows of the slot that this way needs.
        num_own, num_rows: vertices of this way, and with those of others behind them.
    """

    products: tuple[Matrix, ...]
    sends: tuple[tuple[Tensor, ...], ...]
    halo_offsets: np.ndarray
    num_own: int
    num_rows: int

    def coming(self, way: int, slot: int, slots: int) -> slice:
        """Return where, among the rows, those of another way's slot are."""
        begin, end = self.halo_offsets[way * slots + slot], self.halo_offsets[way * slots + slot + 1]
        return slice(self.num_own + int(begin), self.num_own + int(end))

    def coming_all(self, way: int, slots: int) -> slice:
        """Return where those of all slots of another way are."""
        return slice(self.coming(way, 0, slots).start, self.coming(way, slots - 1, slots).stop)


class Reach:
    """One way's share of the graph.

    Args:
        kernel: of the products; see `kernels.Matrix`.
    """

    def __init__(
        self, graph: Graph, layout: Layout, way: int, *, dtype: torch.dtype, device: torch.device, kernel: str
    ) -> None:
        self.layout, self.way, self.slots, self.ways = layout, way, layout.slots, layout.ways
        self._graph, self._dtype, self._device, self._kernel = graph, dtype, device, kernel
        self._sheets: dict[tuple[str, bool], Sheets] = {}
        self._patterns: dict[bool, Share] = {}
        self._edges: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}
        sizes = [len(layout.rows(way, slot)) for slot in range(layout.slots)]
        self.starts = [0, *np.cumsum(sizes).tolist()]

    @property
    def num_own(self) -> int:
        """Vertices of this way."""
        return int(self.starts[-1])

    def rows(self, slot: int) -> slice:
        """Return where a slot's vertices are among this way's."""
        return slice(self.starts[slot], self.starts[slot + 1])

    def size(self, slot: int) -> int:
        """Return a slot's number of vertices."""
        return int(self.starts[slot + 1] - self.starts[slot])

    def sheets(self, kind: str, *, backward: bool) -> Sheets:
        """Return the share of a propagation matrix, or of its transpose."""
        if backward and kind != "mean" and self._symmetric:
            backward = False  # a symmetric matrix is its own transpose, to the bit
        if (kind, backward) not in self._sheets:
            matrix = propagation(self._graph, kind)
            part = share(matrix.T.tocsr() if backward else matrix, self.layout, self.way)
            self._sheets[kind, backward] = self._prepare(part)
        return self._sheets[kind, backward]

    def _prepare(self, part: Share) -> Sheets:
        products = tuple(
            Matrix(matrix, dtype=self._dtype, device=self._device, kernel=self._kernel) for matrix in part.matrices
        )
        sends = tuple(tuple(torch.from_numpy(rows).to(self._device) for rows in each) for each in part.sends)
        return Sheets(products, sends, part.halo_offsets, part.num_own, part.num_own + len(part.halo))

    @cached_property
    def _symmetric(self) -> bool:
        return is_symmetric(self._graph)

    @cached_property
    def vertices(self) -> np.ndarray:
        """The vertices of all rows: this way's own, then those it needs of others."""
        return np.concatenate([self.layout.way(self.way), self._pattern(False).halo])

    def edges(self, slot: int, self_loops: bool) -> tuple[Tensor, Tensor]:
        """Return the rows that a slot's vertices aggregate from, each once, and the edges, ordered by target.

        Shapes: `[m]` among this way's rows; `[2, e]`: place among those m, place among the slot's vertices.
        """
        if (slot, self_loops) not in self._edges:
            self._edges[slot, self_loops] = self._find_edges(slot, self_loops)
        return self._edges[slot, self_loops]

    def all_edges(self, self_loops: bool) -> Tensor:
        """Return the edges of all slots, ordered by target.

        Shapes: `[2, e]`: place among this way's rows, place among its vertices.
        """
        edges = []
        for slot in range(self.slots):
            read, local = self.edges(slot, self_loops)
            edges.append(torch.stack([read[local[0]], local[1] + self.starts[slot]]))
        return torch.cat(edges, dim=1)

    def _find_edges(self, slot: int, self_loops: bool) -> tuple[Tensor, Tensor]:
        matrix = self._pattern(self_loops).matrices[slot]
        targets = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
        rows, places = np.unique(matrix.indices, return_inverse=True)
        edges = torch.from_numpy(np.stack([places.ravel(), targets]).astype(np.int64))
        return torch.from_numpy(rows.astype(np.int64)).to(self._device), edges.to(self._device)

    def _pattern(self, self_loops: bool) -> Share:
        if self_loops not in self._patterns:
            matrix = propagation(self._graph, pattern(self_loops))
            self._patterns[self_loops] = share(matrix, self.layout, self.way)
        return self._patterns[self_loops]
