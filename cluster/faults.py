"""Faults on purpose, for tests and demonstrations: kill or freeze a worker's process on this machine.

Only processes named by id are touched. A whole node is lost with `SimulatedCluster.kill_node`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def kill(pid: int) -> None:
    """Kill a process as the kernel does when memory runs out: at once, with nothing said."""
    os.kill(pid, signal.SIGKILL)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process inside the `with` block, as a hung disk or driver would, and let it go on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # somebody may have replaced it meanwhile
            os.kill(pid, signal.SIGCONT)
