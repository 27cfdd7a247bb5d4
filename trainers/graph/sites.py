"""Where layers aggregate, chunk by chunk: fresh rows of chunks that have been, older ones of those to come.

A *site* is one aggregation in the model. It keeps a table of rows, of this way's vertices and of those of other ways
that they aggregate from. In an epoch, chunks come in some order; chunk c's forward writes its rows and multiplies

    forward c     rows[c] <- x;       result = A[c, :] rows             later chunks' rows are those of the history
    backward c    gradients[c] <- g;  returned = A[:, c]^T gradients    later chunks have been, earlier ones are zero
                  then gradients[c] *= correction                       for the chunks still to come

Backward visits chunks in reverse. With `correction` 1 this is autograd with the history detached, exactly: what chunk
r took fresh from c comes back, what it took from history does not. With 2, gradients that cross chunks count twice:
over random orders half of them are missing, so the mean over orders of one such hop is right, and of several is not.

Source: GNNPipe (arXiv:2308.10087), its techniques 1 to 3, as its artefact does them. Deviation: rows between ways
are exchanged for the chunk under way only, as there, but by lists of rows that are needed, not by a hash of vertices.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainers.graph.exchange import Exchange
from trainers.graph.kernels import Matrix
from trainers.graph.reach import Reach, Sheets

Returns = Literal["", "read by", "read"]
"""Which rows of gradients ways exchange in a site's backward: none; those of vertices that read their own, as many as
the transposed matrix needs; or those that they have read themselves, as many as in forward."""


class Table:
    """Rows of all vertices that a way reads at one site, as far as they are known.

    Args:
        refresh: epochs between moves of the history; see `settings.Settings`.
        several: whether there is more than one chunk; with one nothing is ever older.
    """

    def __init__(self, num_rows: int, like: Tensor, refresh: int, several: bool) -> None:
        self.rows = like.new_zeros(num_rows, like.shape[1])
        self._refresh, self._several = refresh, several
        self._kept = like.new_zeros(num_rows, like.shape[1]) if several and refresh > 1 else None

    def begin(self) -> None:
        """Begin an epoch with the history's rows."""
        if not self._several:
            return
        if self._kept is not None:
            self.rows.copy_(self._kept)
        elif self._refresh == 0:
            self.rows.zero_()

    def end(self, epoch: int) -> None:
        """Keep this epoch's rows where the history moves after it."""
        if self._kept is not None and epoch % self._refresh == 0:
            self._kept.copy_(self.rows)

    @property
    def history(self) -> Tensor | None:
        """What the next epoch begins with, unless it is nothing."""
        if not self._several or self._refresh == 0:
            return None
        return self.rows if self._kept is None else self._kept


class Kept:
    """Results of chunks that are handed out a second time."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, int]] = {}

    def put(self, slot: int, result: Tensor) -> None:
        self._found[slot] = (result, result._version)

    def pop(self, slot: int) -> Tensor:
        """Return what was put, once.

        Raises:
            RuntimeError: as `unchanged`.
        """
        return unchanged(*self._found.pop(slot))

    def clear(self) -> None:
        self._found.clear()


def unchanged(rows: Tensor, version: int) -> Tensor:
    """Return rows that layers have been given before.

    Raises:
        RuntimeError: when a layer has written to them.
    """
    if rows._version != version:
        raise RuntimeError(
            "rows that the graph has handed out were changed in place, but are handed out again; "
            "write relu(x), x * 2 or dropout(x) instead of relu_(x), x *= 2 or dropout(x, inplace=True)"
        )
    return rows


class Site:
    """One aggregation with a fixed matrix.

    Args:
        name: in checkpoints. number: on this stage. kind: of the matrix.
        like: rows of the width, dtype and device that it aggregates.
    """

    def __init__(
        self,
        name: str,
        number: int,
        kind: str,
        reach: Reach,
        exchange: Exchange,
        like: Tensor,
        *,
        refresh: int,
        correction: float,
        keep: bool,
    ) -> None:
        self.name, self._number, self._reach, self._exchange = name, number, reach, exchange
        self._correction, self._keep = correction, keep
        self._forward = reach.sheets(kind, backward=False)
        self._backward = reach.sheets(kind, backward=True)
        self._like = like.new_empty(0, like.shape[1])
        self.table = Table(self._forward.num_rows, self._like, refresh, reach.slots > 1)
        self._gradients: Tensor | None = None  # made by the first backward: the first layer's may have none
        self._results = Kept()

    @property
    def width(self) -> int:
        """Values a row."""
        return int(self._like.shape[1])

    @property
    def returns(self) -> Returns:
        """Whose gradients have come back so far."""
        return "" if self._gradients is None else "read by"

    def begin(self) -> None:
        """Begin an epoch."""
        self._results.clear()
        self.table.begin()
        if self._gradients is not None and self._reach.slots > 1:
            self._gradients.zero_()

    def end(self, epoch: int) -> None:
        """End an epoch, from 1."""
        self.table.end(epoch)

    def forward(self, slot: int, x: Tensor, again: bool) -> Tensor:
        """Return the aggregate of a chunk's vertices; `again`, when the chunk is computed a second time, the same."""
        if again:
            return self._results.pop(slot)
        rows = self.table.rows
        rows[self._reach.rows(slot)] = x
        self._swap("F", self._forward, slot, x, rows)
        result = self._forward.products[slot].multiply(rows)
        if self._keep:
            self._results.put(slot, result)
        return result

    def backward(self, slot: int, gradient: Tensor) -> Tensor:
        """Return the gradient of a chunk's rows."""
        sheets = self._backward
        if self._gradients is None:
            self._gradients = self._like.new_zeros(sheets.num_rows, self._like.shape[1])
        rows, own = self._gradients, self._reach.rows(slot)
        rows[own] = gradient
        self._swap("B", sheets, slot, gradient, rows)
        result = sheets.products[slot].multiply(rows)
        if self._correction != 1 and self._reach.slots > 1:
            rows[own] *= self._correction
            for way in range(self._reach.ways):
                if way != self._reach.way:
                    rows[sheets.coming(way, slot, self._reach.slots)] *= self._correction
        return result

    def infer(self, x: Tensor) -> Tensor:
        """Return the aggregate of all vertices of this way at once; the table stays as it is."""
        sheets, slots, ways = self._forward, self._reach.slots, self._reach.ways
        rows = torch.cat([x, x.new_empty(sheets.num_rows - sheets.num_own, x.shape[1])]) if ways > 1 else x
        if ways > 1:
            give = [_all_sends(self._reach, sheets, way) for way in range(ways)]
            room = [rows[sheets.coming_all(way, slots)] for way in range(ways)]
            self._exchange.swap("F", self._number, slots, [x[index] for index in give], room)
        return torch.cat([product.multiply(rows) for product in sheets.products])

    def _swap(self, kind: str, sheets: Sheets, slot: int, x: Tensor, rows: Tensor) -> None:
        ways = range(self._reach.ways)
        if len(ways) == 1:
            return
        give = [x[sheets.sends[way][slot]] if way != self._reach.way else None for way in ways]
        room = [rows[sheets.coming(way, slot, self._reach.slots)] for way in ways]
        self._exchange.swap(kind, self._number, slot, give, room)  # type: ignore[arg-type]


def _all_sends(reach: Reach, sheets: Sheets, way: int) -> Tensor:
    return torch.cat([rows + reach.starts[slot] for slot, rows in enumerate(sheets.sends[way])])


class Constant:
    """An aggregation of the input features themselves: the same in every epoch, exact, and computed once.

    Args:
        features: of all rows that this way reads.
    """

    def __init__(self, products: tuple[Matrix, ...], features: Tensor) -> None:
        self._results = [product.multiply(features) for product in products]
        self._versions = [result._version for result in self._results]

    def of(self, slot: int | None) -> Tensor:
        """Return a chunk's aggregate, or that of all.

        Raises:
            RuntimeError: as `unchanged`.
        """
        results = list(map(unchanged, self._results, self._versions))
        return torch.cat(results) if slot is None else results[slot]
