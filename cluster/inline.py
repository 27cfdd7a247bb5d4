"""The executor without Ray: one worker in this process, one call after the other.

It gives the bits that any number of remote workers gives, starts at once, and lets a debugger step into user
code. It has no time-outs and cannot lose a worker.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.errors import RemoteFailure
from cluster.executor import Answer, Call, Notify, WorkerSpec
from cluster.host import Host, Raised

WORKER = "worker 0"


class Kept:
    """A handle to a shared value; here the value itself."""

    __slots__ = ("released", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.released = False


class InlineExecutor:
    """One worker in this process.

    Args:
        notify: called when the worker is built.
        environment: variables set before the worker's class is imported, and put back by `close`.
    """

    def __init__(self, notify: Notify | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._notify = notify
        self._environment = dict(environment or {})
        self._host: Host | None = None
        self._before: tuple[dict[str, str | None], list[str]] | None = None

    @property
    def num_workers(self) -> int:
        return 1

    def share(self, value: Any) -> Kept:
        return Kept(value)

    def release(self, handle: Any) -> None:
        handle.value, handle.released = None, True

    def start(self, spec: WorkerSpec) -> None:
        self.close()
        self._before = ({name: os.environ.get(name) for name in self._environment}, list(sys.path))
        host = Host(self._environment)
        built = host.build(spec.target, spec.sys_path, tuple(spec.kwargs), *map(_resolve, spec.kwargs.values()))
        if isinstance(built, Raised):
            self.close()
            raise RemoteFailure(built.reason, WORKER, "", -1, built.traceback)
        self._host = host
        if self._notify is not None:
            self._notify("worker_started", {"worker": WORKER, "node": "", "pid": os.getpid()})

    def run(self, calls: Sequence[Call]) -> Iterator[Answer]:
        if self._host is None:
            raise RuntimeError("start() comes before run()")
        for index, call in enumerate(calls):
            answer = self._host.call(call.method, *map(_resolve, call.args))
            if isinstance(answer, Raised):
                raise RemoteFailure(answer.reason, WORKER, "", index, answer.traceback)
            yield Answer(index, answer.value, WORKER, "")

    def close(self) -> None:
        self._host = None
        if self._before is not None:
            environment, path = self._before
            for name, value in environment.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            sys.path[:] = path
            self._before = None

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _resolve(value: Any) -> Any:
    if not isinstance(value, Kept):
        return value
    if value.released:
        raise ValueError("this shared value was released")
    return value.value
