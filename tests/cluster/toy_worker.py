"""A worker class for the tests of executors: adds, raises, dies, or waits as it is told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


class Toy:
    def __init__(self, base: Any = 0, fail: str = "") -> None:
        if fail:
            raise ValueError(fail)
        self.base = base

    def add(self, value: int) -> Any:
        return self.base + value

    def echo(self, *values: Any) -> Any:
        return values[0] if len(values) == 1 else values

    def pid(self) -> int:
        return os.getpid()

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def fail(self, text: str) -> None:
        raise ValueError(text)

    def leave(self) -> None:
        raise SystemExit(3)

    def unpicklable(self) -> Any:
        import threading

        return threading.Lock()

    def raise_unpicklable(self) -> None:
        class Odd(Exception):
            def __reduce__(self) -> Any:
                raise TypeError("cannot pickle me")

        raise Odd("odd one")

    def die_once(self, marker: str, value: int) -> int:
        """Kill this process with the first call that finds no marker file, and answer ever after."""
        path = Path(marker)
        if not path.exists():
            path.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wait_for(self, marker: str, limit_s: float = 60.0) -> int:
        """Answer once the marker file exists."""
        deadline = time.monotonic() + limit_s
        while not Path(marker).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(marker)
            time.sleep(0.01)
        return os.getpid()

    def spin(self, seconds: float) -> float:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return seconds

    def eat(self, num_bytes: int) -> int:
        """Take up memory, page by page, and hold it for a while."""
        held = b"x" * num_bytes
        time.sleep(5)
        return len(held)
