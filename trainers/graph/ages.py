"""Where a chunk's product finds the rows that it reads, as chunks of an epoch go by: no row has to be moved for it.

A table has the rows that chunks write in this epoch first, and behind them what is read of the chunks that have not
been yet:

    forward    rows of this epoch | rows of the history            row r is read at r, or before its chunk at n + r
    backward   gradients          | one row of zeros               row r is read at r, or before its chunk at n

So a matrix is multiplied with its entries in other columns, which all aggregations of a stage share. That is one number
an entry and chunk, where copying the history and clearing the gradients was 3 H numbers a vertex and aggregation.
A sum goes over the same numbers in the same order, so no bit depends on it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainers.graph.kernels import Matrix
from trainers.graph.reach import Reach

Before = Literal["itself", "history", "zero"]
"""What is read of a chunk that has not been: what is in its place, the row n further on, or row n."""


class Ages:
    """Which chunks have been in an epoch, for one way's share of one matrix.

    Args:
        kind, backward: of the matrix, as `Reach.sheets`.
        before: what is read of chunks that have not been.
        correction: what entries are multiplied by whose column is of another chunk than their row.
    """

    def __init__(self, reach: Reach, kind: str, *, backward: bool, before: Before, correction: float = 1.0) -> None:
        self._reach, self._sheets, self._before = reach, reach.sheets(kind, backward=backward), before
        self._products = self._sheets.products
        if reach.slots > 1 and correction != 1:
            self._products = tuple(self._corrected(slot, correction) for slot in range(reach.slots))
        self._where: Tensor | None = None
        self._been: set[int] = set()
        self._shifted: dict[int, Matrix] = {}

    @property
    def num_rows(self) -> int:
        """Rows of a table."""
        num_rows = self._sheets.num_rows
        return num_rows + {"itself": 0, "history": num_rows, "zero": 1}[self._before]

    def begin(self) -> None:
        """Begin an epoch: no chunk has been."""
        self._been.clear()
        self._shifted.clear()
        self._where = None

    def product(self, slot: int) -> Matrix:
        """Return what aggregates for a chunk, all ways of which have been now."""
        if self._before == "itself":
            return self._products[slot]
        if slot not in self._shifted:
            product = self._products[slot]
            columns = self.places(slot).index_select(0, product.columns)
            self._shifted = {slot: product.reading(columns, self.num_rows)}  # of the chunk under way only
        return self._shifted[slot]

    def places(self, slot: int) -> Tensor:
        """Return where each row is read by a chunk, all ways of which have been now; `[rows of the matrix's table]`."""
        if self._where is None:
            num_rows = self._sheets.num_rows
            where = torch.arange(num_rows, dtype=self._products[0].columns.dtype)
            if self._before == "history":
                where += num_rows
            elif self._before == "zero":
                where.fill_(num_rows)
            self._where = where.to(self._products[0].device)
        if slot not in self._been:
            for rows in self._of(slot):
                self._where[rows] = torch.arange(rows.start, rows.stop, dtype=self._where.dtype).to(self._where.device)
            self._been.add(slot)
        return self._where

    def read(self, slot: int, rows: Tensor) -> Tensor:
        """Return where a chunk, all ways of which have been now, reads some rows."""
        return rows if self._before == "itself" else self.places(slot)[rows]

    def catch_up(self, slot: int, whole: Tensor, written: set[int]) -> None:
        """Give a table, at this chunk's turn, what is read of chunks that have been elsewhere but not in this table.

        A layer that is left out for a chunk, or what it returns, writes no rows of it there.

        Args:
            written: chunks that the table has rows of in this epoch; all that have been are among them afterwards.
        """
        for missed in self._been - written - {slot}:
            for rows in self._of(missed):
                there = slice(rows.start + self._sheets.num_rows, rows.stop + self._sheets.num_rows)
                whole[rows] = whole[there] if self._before == "history" else 0
        written |= self._been | {slot}

    def _of(self, slot: int) -> list[slice]:
        """Return which rows are of a slot, of whatever way."""
        reach, sheets = self._reach, self._sheets
        others = [way for way in range(reach.ways) if way != reach.way]
        return [reach.rows(slot), *(sheets.coming(way, slot, reach.slots) for way in others)]

    def _corrected(self, slot: int, correction: float) -> Matrix:
        product = self._sheets.products[slot]
        factors = torch.full((self._sheets.num_rows,), correction, dtype=product.dtype, device=product.device)
        for rows in self._of(slot):
            factors[rows] = 1
        return product.weighted(factors.index_select(0, product.columns))
