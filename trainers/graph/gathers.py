"""Rows for layers that weigh edges themselves, as attention does: what each edge begins at, chunk by chunk.

As a `Site`, but what a layer gets are the rows that its chunk aggregates from, and what comes back are gradients of
those rows. They are added up in a table:

    forward c     rows[c] <- x;  result = rows[those that c reads]
    backward c    gradients[those that c reads] += g, times `correction` where they are of other chunks
                  returned = gradients[c]: of c itself and of the later chunks that have read it fresh

What is added to chunks that were later than c is never read. Between ways, the rows that others have read of a chunk
come back to it when the chunk is done.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.graph.exchange import Exchange
from trainers.graph.reach import Reach, Sheets
from trainers.graph.sites import Kept, Returns, Table


class Gather:
    """One place where a layer reads its sources.

    Args:
        name: in checkpoints. number: on this stage. like: rows of the width, dtype and device that it reads.
    """

    def __init__(
        self,
        name: str,
        number: int,
        self_loops: bool,
        reach: Reach,
        exchange: Exchange,
        like: Tensor,
        *,
        refresh: int,
        correction: float,
        keep: bool,
    ) -> None:
        self.name, self._number, self._reach, self._exchange = name, number, reach, exchange
        self._correction, self._keep, self._loops = correction, keep, self_loops
        self._sheets: Sheets = reach.sheets("sum", backward=False)
        self._like = like.new_empty(0, like.shape[1])
        self.table = Table(self._sheets.num_rows, self._like, refresh, reach.slots > 1)
        self._gradients: Tensor | None = None
        self._results = Kept()

    def edges(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return which rows a chunk reads, and its edges."""
        return self._reach.edges(slot, self._loops)

    @property
    def width(self) -> int:
        """Values a row."""
        return int(self._like.shape[1])

    @property
    def returns(self) -> Returns:
        """Whose gradients have come back so far."""
        return "" if self._gradients is None else "read"

    def begin(self) -> None:
        """Begin an epoch."""
        self._results.clear()
        self.table.begin()
        if self._gradients is not None:
            self._gradients.zero_()

    def end(self, epoch: int) -> None:
        """End an epoch, from 1."""
        self.table.end(epoch)

    def forward(self, slot: int, x: Tensor, again: bool) -> Tensor:
        """Return the rows that a chunk reads; `again`, when the chunk is computed a second time, the same."""
        if again:
            return self._results.pop(slot)
        rows, ways = self.table.rows, range(self._reach.ways)
        rows[self._reach.rows(slot)] = x
        if len(ways) > 1:
            sends = [self._sheets.sends[way][slot] for way in ways]
            self._exchange.swap("F", self._number, slot, [x[index] for index in sends], self._room(rows, slot))
        result = rows[self.edges(slot)[0]]
        if self._keep:
            self._results.put(slot, result)
        return result

    def backward(self, slot: int, gradient: Tensor) -> Tensor:
        """Return the gradient of a chunk's rows, of all that have read them fresh."""
        if self._gradients is None:
            self._gradients = self._like.new_zeros(self._sheets.num_rows, self._like.shape[1])
        sums, own, ways = self._gradients, self._reach.rows(slot), range(self._reach.ways)
        read = self.edges(slot)[0]
        if self._correction != 1 and self._reach.slots > 1:
            gradient = torch.where(self._of(slot, read)[:, None], gradient, gradient * self._correction)
        sums.index_add_(0, read, gradient)
        result = sums[own].clone()
        if len(ways) > 1:
            sends = [self._sheets.sends[way][slot] for way in ways]
            came = [result.new_empty(len(index) if way != self._reach.way else 0, result.shape[1])
                    for way, index in enumerate(sends)]  # fmt: skip
            going = [rows.clone() for rows in self._room(sums, slot)]  # to which earlier chunks would add meanwhile
            self._exchange.swap("B", self._number, slot, going, came)
            for way in ways:
                if way != self._reach.way:
                    result.index_add_(0, sends[way], came[way])
        return result

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows that all vertices of this way read at once, and the edges; the table stays as it is."""
        reach, sheets = self._reach, self._sheets
        rows = torch.cat([x, x.new_empty(sheets.num_rows - sheets.num_own, x.shape[1])])
        if reach.ways > 1:
            give = [
                x[torch.cat([index + reach.starts[slot] for slot, index in enumerate(sheets.sends[way])])]
                for way in range(reach.ways)
            ]
            room = [rows[sheets.coming_all(way, reach.slots)] for way in range(reach.ways)]
            self._exchange.swap("F", self._number, reach.slots, give, room)
        return rows, reach.all_edges(self._loops)

    def _room(self, rows: Tensor, slot: int) -> list[Tensor]:
        """Return for each way its rows of a slot, none of this way's own."""
        slots = self._reach.slots
        return [
            rows[self._sheets.coming(way, slot, slots)] if way != self._reach.way else rows[:0]
            for way in range(self._reach.ways)
        ]

    def _of(self, slot: int, read: Tensor) -> Tensor:
        """Return which of the rows are of this slot, of whatever way."""
        own = self._reach.rows(slot)
        found = (read >= own.start) & (read < own.stop)
        for way in range(self._reach.ways):
            if way != self._reach.way:
                there = self._sheets.coming(way, slot, self._reach.slots)
                found |= (read >= there.start) & (read < there.stop)
        return found
