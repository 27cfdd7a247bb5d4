"""Ctrl-C and SIGTERM as one interruption that arrives between writes, never inside one.

While `Interrupts` is active, the first signal raises KeyboardInterrupt wherever the main thread is, except inside
`deferred()`, where it waits for the end of the block. A second signal raises at once, for a user who means it.
Outside the main thread (a Ray Tune trial), signals belong to somebody else and nothing is installed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Context manager that turns SIGINT and SIGTERM into well-placed KeyboardInterrupts."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._arrived) for number in _SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def pending(self) -> bool:
        """Whether an interruption has arrived that a `deferred()` block holds back; a long one ends itself then."""
        return self._pending

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold an interruption back until the block is done."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._pending and not self._depth:
            self._pending = False
            raise KeyboardInterrupt

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._depth and not self._pending:
            self._pending = True
            return
        self._pending = False
        raise KeyboardInterrupt
