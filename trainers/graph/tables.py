"""What sites and gathers have in common: a table of rows by age, results handed out twice, rows between ways.

`sites` says what a table is for.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainers.graph.ages import Ages, Before
from trainers.graph.exchange import Exchange
from trainers.graph.reach import Reach, Sheets

Returns = Literal["", "read by", "read"]
"""Which rows of gradients ways exchange in a site's backward: none; those of vertices that read their own, as many as
the transposed matrix needs; or those that they have read themselves, as many as in forward."""


class Table:
    """Rows of all vertices that a way reads at one site, as far as they are known.

    `whole` is what matrices multiply, see `ages`; `rows` are those that chunks write.

    Args:
        refresh: epochs between moves of the history; see `settings.Settings`.
        several: whether there is more than one chunk; with one nothing is ever older.
    """

    def __init__(self, num_rows: int, like: Tensor, refresh: int, several: bool) -> None:
        self._refresh, self._several = refresh, several
        there = before(refresh, several)
        self.whole = like.new_zeros(num_rows + {"itself": 0, "history": num_rows, "zero": 1}[there], like.shape[1])
        self.rows = self.whole[:num_rows]
        self._kept = self.whole[num_rows:] if there == "history" else None

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


def before(refresh: int, several: bool) -> Before:
    """Return what is read of a chunk that has not been in this epoch."""
    if not several or refresh == 1:
        return "itself"
    return "zero" if refresh == 0 else "history"


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


class Place:
    """One question that a layer asks about its neighbours, and all that is known for an answer.

    Args:
        name: in checkpoints. number: on this stage. sheets: which rows it reads, and who needs which.
        like: rows of the width, dtype and device that it reads.
        ages: which rows are read where; shared by all places with the same matrix.
        refresh, correction: see `settings.Settings`. keep: whether results are kept for a second computation.
    """

    def __init__(
        self,
        name: str,
        number: int,
        sheets: Sheets,
        reach: Reach,
        exchange: Exchange,
        like: Tensor,
        ages: Ages,
        *,
        refresh: int,
        correction: float,
        keep: bool,
    ) -> None:
        self.name, self._number, self._reach, self._exchange = name, number, reach, exchange
        self._correction, self._keep, self._forward, self._ages = correction, keep, sheets, ages
        self._like = like.new_empty(0, like.shape[1])
        self.table = Table(sheets.num_rows, self._like, refresh, reach.slots > 1)
        self._gradients: Tensor | None = None  # made by the first backward: the first layer's may have none
        self._results = Kept()
        self._written_rows: set[int] = set()

    @property
    def width(self) -> int:
        """Values a row."""
        return int(self._like.shape[1])

    def begin(self) -> None:
        """Begin an epoch."""
        self._results.clear()
        self._written_rows.clear()

    def end(self, epoch: int) -> None:
        """End an epoch, from 1."""
        self.table.end(epoch)

    def _written(self, slot: int, x: Tensor) -> Tensor:
        """Return the table with a chunk's rows, and those that the other ways have of its slot."""
        rows = self.table.rows
        rows[self._reach.rows(slot)] = x
        self._swap("F", self._forward, slot, x, rows)
        self._ages.catch_up(slot, self.table.whole, self._written_rows)
        return self.table.whole

    def _everybody(self, x: Tensor) -> Tensor:
        """Return the rows of all vertices that this way reads, given those of its own."""
        sheets, slots, ways = self._forward, self._reach.slots, self._reach.ways
        rows = torch.cat([x, x.new_empty(sheets.num_rows - sheets.num_own, x.shape[1])])
        if ways > 1:
            give = [x[_all_sends(self._reach, sheets, way)] for way in range(ways)]
            room = [rows[sheets.coming_all(way, slots)] for way in range(ways)]
            self._exchange.swap("F", self._number, slots, give, room)
        return rows

    def _swap(self, kind: Literal["F", "B"], sheets: Sheets, slot: int, x: Tensor, rows: Tensor) -> None:
        ways = range(self._reach.ways)
        if len(ways) == 1:
            return
        give = [x[sheets.sends[way][slot]] if way != self._reach.way else None for way in ways]
        room = [rows[sheets.coming(way, slot, self._reach.slots)] for way in ways]
        self._exchange.swap(kind, self._number, slot, give, room)


def _all_sends(reach: Reach, sheets: Sheets, way: int) -> Tensor:
    return torch.cat([rows + reach.starts[slot] for slot, rows in enumerate(sheets.sends[way])])
