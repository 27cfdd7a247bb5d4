"""One way's part of a propagation matrix, and which rows it gets from whom and sends to whom.

A way that aggregates over its own vertices needs rows of vertices that others have: its *halo*. It keeps its own rows
and the halo's in one table, and its part of the matrix numbers columns by that table:

    columns:  own, slot 0 | own, slot 1 | .. | halo: from way 0, slot 0 | way 0, slot 1 | .. | way 1, slot 0 | ..

Both sides order the rows of a message by layout position, so that messages need no ids. The same holds for gradients
with the transposed matrix, `share(matrix.T.tocsr(), layout, way)`: a row of gradients goes to those who use its vertex.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from strategies.graph.layout import Layout
from strategies.graph.structure import Integers


class Share(NamedTuple):
    """What one way needs to aggregate for its own vertices.

    Args:
        matrices: one a slot: the rows of that slot's own vertices over the columns of the table. Entries of a row
            stand in ascending order of *original* vertex id, not of column: a kernel that sums them in this order
            gives the same bits whatever the number of ways. So scipy's `has_sorted_indices` is false in general.
        num_own: the first columns are the way's own vertices, in layout order.
        halo: the vertices of the other columns, in layout order.
        halo_offsets: `halo[halo_offsets[c]:halo_offsets[c + 1]]` are those of chunk c, `way * slots + slot`.
        sends: `sends[v][s]` are the rows, counted within slot s of this way, that way v needs once slot s is done.

    Shapes: matrix s `[vertices of slot s, num_own + num_halo]`, `halo [num_halo]`, `halo_offsets [ways * slots + 1]`.
    """

    matrices: tuple[sp.csr_matrix, ...]
    num_own: int
    halo: Integers
    halo_offsets: Integers
    sends: tuple[tuple[Integers, ...], ...]

    @property
    def num_halo(self) -> int:
        """Number of rows that come from other ways."""
        return len(self.halo)


def share(matrix: sp.csr_matrix, layout: Layout, way: int) -> Share:
    """Return one way's part of a matrix, in whatever order the entries of the matrix's rows stand.

    Raises:
        ValueError: when the matrix is not of the layout's graph.
        IndexError: when there is no such way.

    Shapes: `matrix [num_vertices, num_vertices]`.
    """
    start, end = layout.span(way)
    needed = needs(matrix, layout)
    halo = np.flatnonzero(needed[way])
    column = np.empty(layout.num_vertices, np.int64)  # of a position in the layout
    column[start:end] = np.arange(end - start)
    column[halo] = end - start + np.arange(len(halo))

    rows = matrix[layout.way(way)]
    rows.sort_indices()
    columns = column[layout.positions()[rows.indices]]
    bounds = layout.offsets[way * layout.slots : (way + 1) * layout.slots + 1] - start
    return Share(
        matrices=tuple(_slot(rows, columns, end - start + len(halo), first, last) for first, last in pairwise(bounds)),
        num_own=end - start,
        halo=layout.order[halo],
        halo_offsets=np.searchsorted(halo, layout.offsets),
        sends=tuple(
            tuple(np.flatnonzero(wanted[first:last]) for first, last in pairwise(bounds))
            for wanted in needed[:, start:end]
        ),
    )


def needs(matrix: sp.csr_matrix, layout: Layout) -> NDArray[np.bool_]:
    """Return whether a way needs the vertex at a position of the layout from another way; `[ways, num_vertices]`.

    Raises:
        ValueError: when the matrix is not of the layout's graph.
    """
    if matrix.shape != (layout.num_vertices, layout.num_vertices):
        raise ValueError(f"the layout is of {layout.num_vertices} vertices, but the matrix is {matrix.shape}")
    positions = layout.positions()
    needed = np.zeros((layout.ways, layout.num_vertices), np.bool_)
    for way in range(layout.ways):
        needed[way, positions[matrix[layout.way(way)].indices]] = True
        needed[way, slice(*layout.span(way))] = False
    return needed


def _slot(rows: sp.csr_matrix, columns: Integers, num_columns: int, first: int, last: int) -> sp.csr_matrix:
    """Return some consecutive rows over renumbered columns, in 32-bit numbers where they fit."""
    start, end = rows.indptr[first], rows.indptr[last]
    kind = np.int32 if max(num_columns, end - start) < 2**31 else np.int64
    indptr = (rows.indptr[first : last + 1] - start).astype(kind)
    found = (rows.data[start:end].copy(), columns[start:end].astype(kind), indptr)
    return sp.csr_matrix(found, shape=(last - first, num_columns))
