"""The virtual clock: which participation finishes next, on a time line that no machine's speed touches.

Clients that train get a *ticket* with the model version they received and the time at which they will be done.
The clock hands tickets back in order of time; equal times are ordered by start. Nothing is computed here: an
engine computes a ticket's update when the ticket comes due, so that work nobody waits for is never done.
`Clock` is the state, a value; `VirtualClock` is the same with a present that moves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.federated import queue
from strategies.federated.queue import Queue

AT_REST = -1
"""The version of a ticket whose client does not train, but will pull the model at `finish_s`."""


class Ticket(NamedTuple):
    """One participation under way. Tickets compare by finish time, then by the order of their start.

    Args:
        finish_s: when it is due. order: its number in the run. version: the model it trains from, or `AT_REST`.
        num_steps: local steps; 0: as the client's settings say.
        repeat: how often the client had pulled this version before; a seed for a participation needs it.
        dropped: whether the client vanishes in the middle. The server learns so at `finish_s`, from the silence.
    """

    finish_s: float
    order: int
    client: int
    version: int
    start_s: float
    num_steps: int = 0
    repeat: int = 0
    dropped: bool = False


@dataclass(frozen=True, eq=False)
class Clock:
    """The state of virtual time between steps.

    Args:
        now_s: the present, in virtual seconds.
        order: the number of tickets ever started.
        pending: the tickets under way.
    """

    now_s: float = 0.0
    order: int = 0
    pending: Queue = None

    @classmethod
    def of(cls, now_s: float, order: int, tickets: Iterable[Ticket]) -> Clock:
        """Return the clock that `now_s`, `order` and `tickets` were read from."""
        return cls(now_s, order, queue.build(tickets))

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The tickets under way, the next one first. O(n log n): for checkpoints, not for every step."""
        return tuple(sorted(queue.items(self.pending)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Clock):
            return NotImplemented
        return (self.now_s, self.order, self.tickets) == (other.now_s, other.order, other.tickets)

    def __hash__(self) -> int:
        return hash((self.now_s, self.order))

    def __repr__(self) -> str:
        return f"Clock(now_s={self.now_s}, order={self.order}, {sum(1 for _ in queue.items(self.pending))} tickets)"


class VirtualClock:
    """A priority queue of tickets, with the present time and a counter that breaks ties.

    Tickets that start and finish between two looks at the `state` never enter its queue: they wait in a heap of their
    own, which is several times faster.

    Args:
        now_s: the present, in virtual seconds.
        order: the number of tickets ever started.
        tickets: those under way; together the three are the clock's whole state.
    """

    def __init__(self, now_s: float = 0.0, order: int = 0, tickets: Iterable[Ticket] = ()) -> None:
        self._set(Clock.of(now_s, order, tickets))

    @classmethod
    def at(cls, state: Clock) -> VirtualClock:
        """Return a clock that goes on from a state, without a look at its tickets."""
        clock = cls()
        clock._set(state)
        return clock

    def _set(self, state: Clock) -> None:
        self.now_s, self.order, self._pending = state.now_s, state.order, state.pending
        self._fresh: list[Ticket] = []

    @property
    def state(self) -> Clock:
        """The clock's whole state; it does not change when the clock goes on."""
        for ticket in self._fresh:
            self._pending = queue.push(self._pending, ticket)
        self._fresh = []
        return Clock(self.now_s, self.order, self._pending)

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """The tickets under way, the next one first."""
        return self.state.tickets

    @property
    def due_s(self) -> float | None:
        """When the next ticket comes due; None when nothing is under way."""
        if self._fresh_is_next:
            return self._fresh[0].finish_s
        due: float | None = self._pending[1].finish_s if self._pending else None
        return due

    def start(
        self,
        client: int,
        version: int,
        duration_s: float,
        *,
        num_steps: int = 0,
        repeat: int = 0,
        dropped: bool = False,
    ) -> Ticket:
        """Start a participation now. Raises ValueError when its duration is not positive."""
        if not duration_s > 0:
            raise ValueError(f"client {client} would take {duration_s} virtual seconds; a duration is above 0")
        return self._push(
            Ticket(self.now_s + duration_s, self.order, client, version, self.now_s, num_steps, repeat, dropped)
        )

    def rest(self, client: int, until_s: float) -> Ticket:
        """Let a client rest until `until_s`, at the earliest now, when its ticket comes due."""
        return self._push(Ticket(until_s, self.order, client, AT_REST, self.now_s))

    def _push(self, ticket: Ticket) -> Ticket:
        self.order += 1
        heappush(self._fresh, ticket)
        return ticket

    def next(self) -> Ticket:
        """Advance to the next finish and return its ticket. Raises IndexError when nothing is under way."""
        ticket: Ticket
        if self._fresh_is_next:
            ticket = heappop(self._fresh)
        elif self._pending is not None:
            ticket, self._pending = queue.pop(self._pending)
        else:
            raise IndexError("nothing is under way")
        self.now_s = ticket.finish_s
        return ticket

    def clients(self) -> set[int]:
        """Return the clients of the tickets under way."""
        return {ticket.client for ticket in chain(queue.items(self._pending), self._fresh)}

    @property
    def _fresh_is_next(self) -> bool:
        return bool(self._fresh) and (self._pending is None or self._fresh[0] < self._pending[1])

    def clear(self) -> tuple[Ticket, ...]:
        """Forget all tickets under way and return them."""
        tickets, self._pending = self.tickets, None  # in turn: to list them all empties the heap
        return tickets


def to_columns(tickets: Iterable[Ticket]) -> dict[str, Tensor]:
    """Return tickets as a tree of columns, exact and compact, for checkpoints."""
    rows = list(tickets)
    kinds = {"finish_s": torch.float64, "start_s": torch.float64, "dropped": torch.bool}
    return {
        name: torch.tensor([row[index] for row in rows], dtype=kinds.get(name, torch.int64))
        for index, name in enumerate(Ticket._fields)
    }


def from_columns(columns: Mapping[str, Tensor]) -> tuple[Ticket, ...]:
    """Return the tickets that `to_columns` wrote."""
    return tuple(Ticket(*row) for row in zip(*(columns[name].tolist() for name in Ticket._fields), strict=True))
