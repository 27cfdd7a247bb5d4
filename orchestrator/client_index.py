"""Where each client's state lies: a hash table in numpy arrays, some 45 bytes a client that has a state.

A client is looked up by its number, and a cohort at a time, so that no Python object exists per client and the cost
does not depend on how many clients there are. A client that never had a state takes no room at all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ENTRY = np.dtype([("client", "<i8"), ("offset", "<i8"), ("length", "<i8"), ("file", "<i4"), ("checksum", "<u4")])
"""One client's state: which file holds it, by the index's numbering, and where in it. `checksum`: CRC-32."""

_SMALLEST = 64


class ClientIndex:
    """The entries of clients, at most one a client."""

    def __init__(self) -> None:
        self._rows = np.empty(_SMALLEST, ENTRY)
        self._count = 0
        self._slots = np.full(2 * _SMALLEST, -1, np.int32)

    def __len__(self) -> int:
        return self._count

    @property
    def num_bytes(self) -> int:
        """Bytes of memory held."""
        return self._rows.nbytes + self._slots.nbytes

    @property
    def entries(self) -> np.ndarray:
        """All entries, in the order in which clients came; a view, valid until the next `put`."""
        return self._rows[: self._count]

    def find(self, clients: np.ndarray) -> np.ndarray:
        """Return the position in `entries` of each client, -1 for those without one."""
        found = np.full(len(clients), -1, np.int64)
        for asked, _, rows in self._probe(clients):
            hit = rows >= 0
            hit[hit] = self._rows["client"][rows[hit]] == clients[asked[hit]]
            found[asked[hit]] = rows[hit]
            rows[hit] = -1
        return found

    def put(self, entries: np.ndarray) -> None:
        """Add the entries of distinct clients, in place of the ones they had."""
        rows = self.find(entries["client"])
        known = rows >= 0
        self._rows[rows[known]] = entries[known]
        new = entries[~known]
        needed = self._count + len(new)
        if needed > len(self._rows):
            grown = np.empty(max(needed, len(self._rows) * 3 // 2), ENTRY)
            grown[: self._count] = self.entries
            self._rows = grown
        self._rows[self._count : needed] = new
        first, self._count = self._count, needed
        if 2 * needed > len(self._slots):
            self._slots = np.full(1 << (2 * needed).bit_length(), -1, np.int32)
            first = 0
        self._hash(first)

    def _hash(self, first: int) -> None:
        """Give the rows from `first` on a slot each; where two want the same, one gets it and the other goes on."""
        rows = np.arange(first, self._count, dtype=np.int32)
        for asked, slots, taken in self._probe(self._rows["client"][first : self._count]):
            free = taken < 0
            self._slots[slots[free]] = rows[asked[free]]
            taken[:] = np.where(self._slots[slots] == rows[asked], -1, 0)

    def _probe(self, clients: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield `(asked, slots, rows)` of linear probing until every client of `asked` has met an empty slot.

        The consumer may set `rows` to -1 to end a client's search.
        """
        mask = len(self._slots) - 1
        slots = (clients.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)).astype(np.int64) & mask
        asked = np.arange(len(clients))
        while len(asked):
            rows = self._slots[slots]
            yield asked, slots, rows
            going = rows >= 0
            asked, slots = asked[going], (slots[going] + 1) & mask
