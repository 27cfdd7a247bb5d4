"""Local learning without order: a ring buffer before each module, and a seeded clock of modules of unequal speed.

Source: Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020 (arXiv:1901.08164), section 3.2
(asynchronous DGL with a replay buffer), and its authors' program (github eugenium/DGL, `buffer_experiments`):

    write   a batch takes the place of the oldest of `size`
    read    among the batches that were used least, the newest ("priority LIFO"); it then counts as used once more
    wait    when every batch was used again `max_reuse` times
    tick    one module, drawn with a probability in proportion to its speed, does one step, if it can

Deviation: in that program a slowed module's probability is lowered and the others' raised to a sum of one, and time is
not said; here a module with slowdown s is drawn with a probability in proportion to 1/s, and a tick lasts the mean time
between two events of independent Poisson clocks of these rates, in batches of a module that is not slowed. A module
that is drawn and cannot act lets its tick pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from strategies.local.base import Carry
from strategies.seeds import generator


class Entry(NamedTuple):
    """A batch in a buffer: its number, what the module before made of it, and how often it has been used."""

    batch: int
    carry: Carry
    uses: int


class Replay:
    """The last batches that reached a module.

    Args:
        size: batches kept. max_reuse: times that one may be used again; None without limit.
    """

    def __init__(self, size: int, max_reuse: int | None = None) -> None:
        if size < 1 or (max_reuse is not None and max_reuse < 0):
            raise ValueError(f"a buffer holds at least 1 batch, used again 0 times or more; got {size} and {max_reuse}")
        self._size, self._max_reuse = size, max_reuse
        self._entries: list[Entry] = []  # oldest first
        self.num_unused = 0

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What is kept, oldest first."""
        return tuple(self._entries)

    def put(self, batch: int, carry: Carry, uses: int = 0) -> None:
        """Keep a batch; beyond `size` the oldest goes, and counts in `num_unused` if it was never used."""
        self._entries.append(Entry(batch, carry, uses))
        while len(self._entries) > self._size:
            self.num_unused += self._entries.pop(0).uses == 0

    def ready(self, *, limited: bool = True) -> bool:
        """Return whether `take` would find a batch."""
        return self._next(limited) is not None

    def take(self, *, limited: bool = True) -> Entry | None:
        """Return the batch to train on, as it was before this use; None when there is none that may be used.

        Args:
            limited: whether `max_reuse` holds; a module that is to do more steps than batches will come needs it not.
        """
        place = self._next(limited)
        if place is None:
            return None
        entry = self._entries[place]
        self._entries[place] = entry._replace(uses=entry.uses + 1)
        return entry

    def _next(self, limited: bool) -> int | None:
        if not self._entries:
            return None
        place = min(range(len(self._entries)), key=lambda place: (self._entries[place].uses, -place))
        if limited and self._max_reuse is not None and self._entries[place].uses > self._max_reuse:
            return None
        return place


class Ticks:
    """Which module acts at each tick of a clock, as a function of the tick's number.

    Args:
        slowdown: of each module, 1 for none.
    """

    def __init__(self, seed: int, slowdown: Sequence[float]) -> None:
        if not slowdown or min(slowdown) <= 0:
            raise ValueError(f"slowdowns must be above 0, got {list(slowdown)}")
        rates = [1 / each for each in slowdown]
        self._seed, self.tick_s = seed, 1 / sum(rates)
        self._shares = [rate * self.tick_s for rate in rates]

    def module(self, tick: int) -> int:
        """Return the module whose turn tick `tick`, from 0, is."""
        return int(generator(self._seed, "tick", tick).choice(len(self._shares), p=self._shares))
