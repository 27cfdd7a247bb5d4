"""The virtual clock: which participation finishes next, on a time line that no machine's speed touches.

Clients that train get a *ticket* with the model version they received and the time at which they will be done.
The clock hands tickets back in order of time; equal times are ordered by start. Nothing is computed here: an
engine computes a ticket's update when the ticket comes due, so that work nobody waits for is never done.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple


class Ticket(NamedTuple):
    """One participation under way. Tickets compare by finish time, then by the order of their start."""

    finish_s: float
    order: int
    client: int
    version: int
    start_s: float


class VirtualClock:
    """A priority queue of tickets, with the present time and a counter that breaks ties.

    Args:
        now_s: the present, in virtual seconds.
        order: the number of tickets ever started.
        tickets: those under way; together the three are the clock's whole state.
    """

    def __init__(self, now_s: float = 0.0, order: int = 0, tickets: Iterable[Ticket] = ()) -> None:
        self.now_s = now_s
        self.order = order
        self._heap = sorted(tickets)

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The tickets under way, the next one first."""
        return tuple(sorted(self._heap))

    def start(self, client: int, version: int, duration_s: float) -> Ticket:
        """Start a participation now. Raises ValueError when its duration is not positive."""
        if not duration_s > 0:
            raise ValueError(f"client {client} would take {duration_s} virtual seconds; a duration is above 0")
        ticket = Ticket(self.now_s + duration_s, self.order, client, version, self.now_s)
        self.order += 1
        heapq.heappush(self._heap, ticket)
        return ticket

    def next(self) -> Ticket:
        """Advance to the next finish and return its ticket. Raises IndexError when nothing is under way."""
        ticket = heapq.heappop(self._heap)
        self.now_s = ticket.finish_s
        return ticket
