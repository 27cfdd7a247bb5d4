"""The one interface through which engines use workers, wherever these run.

An executor holds a fixed number of identical workers, each an instance of a class named by text. Values that
every worker needs (a broadcast model, a data set) are shared once and passed by handle. Calls are pure: an
executor may run one on any worker, and run it again elsewhere when a worker is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class WorkerSpec(NamedTuple):
    """The class that every worker of a pool is an instance of.

    Args:
        target: `module:Class`, imported where the worker runs.
        kwargs: its keyword arguments; values that are handles from `Executor.share` are resolved first.
        sys_path: folders put in front of the import path there, for a user's own modules.
    """

    target: str
    kwargs: Mapping[str, Any]
    sys_path: tuple[str, ...] = ()


class Call(NamedTuple):
    """One call of a worker's method; arguments that are handles from `Executor.share` are resolved first."""

    method: str
    args: tuple[Any, ...]


class Answer(NamedTuple):
    """What a call returned: its position in the list of calls, its value and who answered."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    value: Any
    worker: str
    node: str


class Executor(Protocol):
    """A fixed pool of workers. Use as a context manager: leaving it stops every worker."""

    @property
    def num_workers(self) -> int: ...

    def share(self, value: Any) -> Any:
        """Keep one copy of `value` where all workers can read it; return its handle."""
        ...

    def release(self, handle: Any) -> None:
        """Forget a shared value."""
        ...

    def start(self, spec: WorkerSpec) -> None:
        """Build the workers. Raises `PlacementFailed` when they cannot be placed in time."""
        ...

    def run(self, calls: Sequence[Call]) -> Iterator[Answer]:
        """Run the calls, in the given order of preference, and yield answers as they come.

        Workers in other processes begin at once, before the first answer is asked for.

        Raises:
            RemoteFailure: when a call raised, or its worker was lost more often than allowed.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Executor: ...

    def __exit__(self, *exc: object) -> None: ...


Notify = Callable[[str, Mapping[str, Any]], None]
"""Called by an executor as `notify(kind, fields)` when a worker starts, is lost or is replaced."""
