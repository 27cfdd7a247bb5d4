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

from typing import Any

import torch
from torch import Tensor

from trainers.graph.ages import Ages
from trainers.graph.exchange import Exchange
from trainers.graph.reach import Reach
from trainers.graph.tables import Place, Returns


class Gather(Place):
    """One place where a layer reads its sources.

    Args:
        self_loops: whether every vertex is among them. others: as of `Place`.
    """

    def __init__(
        self,
        name: str,
        number: int,
        self_loops: bool,
        reach: Reach,
        exchange: Exchange,
        like: Tensor,
        ages: Ages,
        **options: Any,
    ) -> None:
        super().__init__(name, number, reach.sheets("sum", backward=False), reach, exchange, like, ages, **options)
        self._loops = self_loops

    def edges(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return which rows a chunk reads, and its edges."""
        return self._reach.edges(slot, self._loops)

    @property
    def returns(self) -> Returns:
        """Whose gradients have come back so far."""
        return "" if self._gradients is None else "read"

    def begin(self) -> None:
        """Begin an epoch."""
        super().begin()
        if self._gradients is not None:
            self._gradients.zero_()

    def forward(self, slot: int, x: Tensor, again: bool) -> Tensor:
        """Return the rows that a chunk reads; `again`, when the chunk is computed a second time, the same."""
        if again:
            return self._results.pop(slot)
        rows = self._written(slot, x)
        result = rows[self._ages.read(slot, self.edges(slot)[0])]
        if self._keep:
            self._results.put(slot, result)
        return result

    def backward(self, slot: int, gradient: Tensor) -> Tensor:
        """Return the gradient of a chunk's rows, of all that have read them fresh."""
        if self._gradients is None:
            self._gradients = self._like.new_zeros(self._forward.num_rows, self._like.shape[1])
        sums, own, ways = self._gradients, self._reach.rows(slot), range(self._reach.ways)
        read = self.edges(slot)[0]
        if self._correction != 1 and self._reach.slots > 1:
            gradient = torch.where(self._of(slot, read)[:, None], gradient, gradient * self._correction)
        sums.index_add_(0, read, gradient)
        result = sums[own].clone()
        if len(ways) > 1:
            sends = [self._forward.sends[way][slot] for way in ways]
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
        return self._everybody(x), self._reach.all_edges(self._loops)

    def _room(self, rows: Tensor, slot: int) -> list[Tensor]:
        """Return for each way its rows of a slot, none of this way's own."""
        slots = self._reach.slots
        return [
            rows[self._forward.coming(way, slot, slots)] if way != self._reach.way else rows[:0]
            for way in range(self._reach.ways)
        ]

    def _of(self, slot: int, read: Tensor) -> Tensor:
        """Return which of the rows are of this slot, of whatever way."""
        own = self._reach.rows(slot)
        found = (read >= own.start) & (read < own.stop)
        for way in range(self._reach.ways):
            if way != self._reach.way:
                there = self._forward.coming(way, slot, self._reach.slots)
                found |= (read >= there.start) & (read < there.stop)
        return found
