"""What a run remembers of each of up to a million virtual clients, on disk, as of its steps.

A state is bytes to this store; engines keep encoded trees in it. In memory is only an index of the clients that have a
state, in numpy arrays. A state goes this way:

    write     into a scratch file of the run directory, at the end of a step; the step may still be thrown away
    commit    the step counts
    seal      at a checkpoint: what was committed since the last one becomes an immutable segment beside the
              checkpoints; the checkpoint names the segments that together hold every client's state at that step

The newest segment that has a client wins, so that a checkpoint costs as much as the clients that changed since the
last one, however many there are. Segments less than half alive, and small ones when there are many, are moved into the
new one, a bounded number of bytes at a time. The scratch file dies with the process: a resume starts at a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from orchestrator.client_index import ENTRY, ClientIndex
from orchestrator.client_scratch import Scratch, aligned
from orchestrator.client_segments import Segment, SegmentFolder

_SCRATCH = 0  # as an entry's file; the others are segments
_AT_A_TIME = 256
_MOVED_BYTES = 64 << 20  # moved between segments at a checkpoint: so much, or what is new, whichever is more
_SMALL_BYTES, _MOST_SMALL = 4 << 20, 16
_SLACK_BYTES = 64 << 20  # of replaced states in the scratch file before it is made anew


class ClientStore:
    """The clients' states of one run. `CheckpointStore.client_store` opens it as of a checkpoint.

    Args:
        folder: where segments lie. scratch: the run directory.
    """

    def __init__(self, folder: SegmentFolder, scratch: Path) -> None:
        self._folder = folder
        self._scratch = Scratch(scratch)
        self._index = ClientIndex()
        self._segments: dict[int, Segment] = {}
        self._numbered = _SCRATCH
        self._staged: dict[int, tuple[int, int]] = {}
        self._limit_bytes = _SLACK_BYTES

    def __len__(self) -> int:
        """Return how many clients have a state."""
        new = np.fromiter(self._staged, np.int64, len(self._staged))
        return len(self._index) + int((self._index.find(new) < 0).sum())

    @property
    def index_bytes(self) -> int:
        """Bytes of memory that the index takes."""
        return self._index.num_bytes

    def read(self, clients: Sequence[int]) -> list[pa.Buffer | None]:
        """Return each client's state, None for one that was never written; local ones are not copied.

        A buffer stays valid whatever is written later, and what is written to it reaches no file.

        Raises:
            ResumeError: naming the file that is damaged.
        """
        asked = np.asarray(clients, np.int64)
        rows = self._index.find(asked)
        entries, known = np.zeros(len(asked), ENTRY), rows >= 0
        entries[known] = self._index.entries[rows[known]]
        for place, client in enumerate(clients):
            if client in self._staged:
                entries[place] = (client, *self._staged[client], _SCRATCH, 0)
                known[place] = True
        states: list[pa.Buffer | None] = [None] * len(asked)
        places = np.flatnonzero(known)
        for place, state in zip(places.tolist(), self._states(entries[places]), strict=True):
            states[place] = state
        return states

    def write(self, entries: Mapping[int, pa.Buffer | bytes | memoryview]) -> None:
        """Remember the clients' states from now on. To be called at the end of a step; see `commit`.

        Raises:
            OrchestratorError: when the disk is full; then nothing of it is remembered.
        """
        spans = self._scratch.append(list(entries.values()))
        self._staged.update(zip(map(int, entries), spans, strict=True))

    def commit(self) -> None:
        """Let what was written be part of the run's state; before that, a checkpoint leaves it out."""
        if self._staged:
            new = np.zeros(len(self._staged), ENTRY)
            new["client"] = list(self._staged)
            new["offset"], new["length"] = np.array(list(self._staged.values()), np.int64).T
            self._index.put(new)
            self._staged = {}
        if self._scratch.end > self._limit_bytes:
            self._renew_scratch()

    def seal(self, step: int) -> list[Segment]:
        """Move what was committed to a segment of its own; return the segments that hold every state as of now.

        Raises:
            OrchestratorError: when the storage cannot be written; the store is then as before.
        """
        moving = self._moving()
        if len(moving):
            segment, entries = self._folder.write(step, self._in_turn(moving))
            self._numbered += 1
            entries["file"] = self._numbered
            self._index.put(entries)
            self._segments[self._numbered] = segment
        if not self._staged:  # what is not committed still lies there
            self._scratch.close()
            self._limit_bytes = _SLACK_BYTES
        live = set(np.unique(self._index.entries["file"]).tolist())
        self._segments = {file: segment for file, segment in self._segments.items() if file in live}
        return list(self._segments.values())

    def restore(self, segments: Sequence[Segment], source: SegmentFolder | None = None) -> None:
        """Hold the states of a checkpoint's segments, which are copied when they are another run's.

        Raises:
            ResumeError: naming the file that is damaged.
        """
        if source is not None and source.root != self._folder.root:
            self._folder.copy(source, segments)
        for segment, entries in zip(segments, self._folder.entries(segments), strict=True):
            self._numbered += 1
            entries["file"] = self._numbered
            self._index.put(entries)
            self._segments[self._numbered] = segment

    def close(self) -> None:
        """Give the scratch file up, and with it all that was not sealed."""
        self._scratch.close()

    # -------------------------------------------------------------------------------------------------- inside

    def _states(self, entries: np.ndarray) -> list[pa.Buffer]:
        """Return the states of entries, in their order."""
        states: list[pa.Buffer] = [None] * len(entries)
        files = np.unique(entries["file"]).tolist()
        places = [np.flatnonzero(entries["file"] == file) for file in files]
        parts = [(self._segments[file].name, entries[at]) for file, at in zip(files, places, strict=True) if file]
        found = self._folder.read(parts)
        if _SCRATCH in files:  # the least of all numbers
            whole, mine = self._scratch.view(), entries[places[0]]
            spans = zip(mine["offset"].tolist(), mine["length"].tolist(), strict=True)
            found.insert(0, [whole.slice(offset, length) for offset, length in spans])
        for at, part in zip(places, found, strict=True):
            for place, state in zip(at.tolist(), part, strict=True):
                states[place] = state
        return states

    def _in_turn(self, entries: np.ndarray) -> Iterator[tuple[int, pa.Buffer]]:
        """Yield client and state of each entry, reading some at a time."""
        for start in range(0, len(entries), _AT_A_TIME):
            part = entries[start : start + _AT_A_TIME]
            yield from zip(part["client"].tolist(), self._states(part), strict=True)

    def _moving(self) -> np.ndarray:
        """Return the entries that go into the next segment: the new ones, and those that leave older segments."""
        entries = self._index.entries
        files = entries["file"]
        live = np.bincount(files, weights=aligned(entries["length"]), minlength=self._numbered + 1)
        leaving = sorted(
            (
                file
                for file, segment in self._segments.items()
                if 2 * live[file] < segment.num_bytes - segment.index_bytes
            ),
            key=lambda file: live[file] / self._segments[file].num_bytes,
        )
        small = [file for file, segment in self._segments.items() if segment.num_bytes < _SMALL_BYTES]
        if len(small) >= _MOST_SMALL:
            leaving += [file for file in small if file not in leaving]
        moving = [_sorted(entries[files == _SCRATCH])]
        budget = max(live[_SCRATCH], _MOVED_BYTES)
        for file in leaving:
            if budget <= 0:
                break
            mine = _sorted(entries[files == file])
            ends = np.cumsum(mine["length"])
            moving.append(mine[: 1 + int(np.searchsorted(ends, budget))])
            budget -= moving[-1]["length"].sum()
        return np.concatenate(moving)

    def _renew_scratch(self) -> None:
        """Copy what still counts to a new scratch file, unless that is most of it."""
        mine = _sorted(self._index.entries[self._index.entries["file"] == _SCRATCH])
        live = int(mine["length"].sum())
        if self._scratch.end > 2 * live + _SLACK_BYTES // 2:
            renewed = Scratch(self._scratch.folder)
            mine["offset"] = [offset for offset, _ in renewed.append(self._states(mine))]
            self._index.put(mine)
            self._scratch.close()
            self._scratch = renewed
        self._limit_bytes = 2 * self._scratch.end + _SLACK_BYTES


def _sorted(entries: np.ndarray) -> np.ndarray:
    return entries[np.argsort(entries["offset"], kind="stable")]
