"""What a rank of a band is: an actor that runs the program, says whether it lives, and finds other ranks."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import NamedTuple

from cluster.gang_rank import Context, Task, perform
from cluster.host import address


class Address(NamedTuple):
    """Where a rank listens. `life` counts the processes that have been this rank; `word` is for who connects."""

    life: int
    host: str
    port: int
    word: bytes


class Line(Context):
    """A rank's view of its band.

    Attributes:
        host: at which this rank's node is reached. patience_s: longest wait for another rank, or the driver.
    """

    def __init__(self, task: Task, rank: int, world_size: int, device: str) -> None:
        super().__init__(task, rank, world_size, device)
        self.host, self.patience_s = address(), task.patience_s

    def announce(self, port: int, word: bytes) -> None:
        """Say where this rank listens."""
        self._tell("announce", self.host, port, word)

    def find(self, rank: int, life: int, wait_s: float) -> Address | None:
        """Return where a rank listens that has lived more often than `life`; None when it does not come in time."""
        import ray

        found: Address | None = ray.get(self._task.hub.find.remote(self._task.number, rank, life, wait_s))
        return found

    def kept(self, whole: int, known: int) -> tuple[int, int]:
        """Wait until the driver keeps a later state, or knows of later steps; return both."""
        import ray

        found: tuple[int, int] = ray.get(self._task.hub.kept.remote(self._task.number, whole, known))
        return found


class Rank:
    """An actor with threads: one runs the program, one tells by its end that the process is gone, one answers."""

    THREADS = 3

    def __init__(self, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)  # before torch is imported

    def where(self) -> tuple[str, int]:
        """Return the node's address and the process."""
        return address(), os.getpid()

    def perform(self, task: Task, rank: int, world_size: int) -> None:
        """Run the program."""
        perform(task, Line(task, rank, world_size, "cpu"))

    def live(self) -> None:
        """Never return: whoever waits learns of the process's end."""
        threading.Event().wait()
