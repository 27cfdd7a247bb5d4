"""Checkpoints written while training goes on: a copy is taken between steps, and a thread writes it.

One write is under way at a time; the next one waits for it, so that there is never more than one copy. Nothing is
reported from the thread: the loop asks between steps what is done.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from trainers import shards
from trainers.shards import Piece, ShardFile


class Written(NamedTuple):
    """A file that is there, whole: this rank's part of the state after a step."""

    step: int
    file: ShardFile


class _Write(threading.Thread):
    def __init__(self, step: int, folder: str, name: str, held: list[Piece]) -> None:
        super().__init__(name=f"checkpoint {step}")
        self._step, self._folder, self._name, self._held = step, folder, name, held
        self.written: Written | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.written = Written(self._step, shards.write(self._folder, self._name, self._held))
        except Exception as error:  # raised again by who asks
            self.error = error
        finally:
            self._held = []


class Saving:
    """Writes one rank's parts of states.

    Args:
        folder: of all checkpoints; those of a step go to `step-000010` below it. name: of this rank's file.
        pieces: what to write of the present state, as views.
    """

    def __init__(self, folder: str, name: str, pieces: Callable[[], Iterable[Piece]]) -> None:
        self._folder, self._name, self._pieces = folder.rstrip("/"), name, pieces
        self._write: _Write | None = None

    def begin(self, step: int) -> list[Written]:
        """Copy the state after a step and begin to write it; return what was still to be finished.

        Raises:
            ShardError, OSError: from the write before.
        """
        finished = self.wait()
        held = [piece._replace(values=_copy(piece.values)) for piece in self._pieces()]
        self._write = _Write(step, f"{self._folder}/step-{step:06d}", self._name, held)
        self._write.start()
        return finished

    def done(self) -> list[Written]:
        """Return what was written since the last time, without waiting.

        Raises:
            ShardError, OSError: from the write.
        """
        return [] if self._write is None or self._write.is_alive() else self.wait()

    def wait(self) -> list[Written]:
        """Wait for the write under way, and return as `done`. Storage has time-outs of its own."""
        write, self._write = self._write, None
        if write is None:
            return []
        write.join()
        if write.error is not None:
            raise write.error
        assert write.written is not None
        return [write.written]


def _copy(values: Any) -> Any:
    return values.detach().to("cpu", copy=True)
