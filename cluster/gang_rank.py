"""What runs on a rank of a gang: the named program, with a context through which it reports to the driver.

A program that raises tells the hub first and then holds still, with its connections open, until it is ended: its
neighbours must not fail for want of it before the cause is known. Nothing here imports torch; Ray Train has set up
the process group before the program is called.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

from cluster.host import load, raised

HOLD_S = 60.0
"""How long a rank that raised waits to be ended, before it ends by itself."""


class Task(NamedTuple):
    """What every rank is given.

    Args:
        hub: the gang's hub, an actor. number: of the run, so that ranks of an earlier one are not heard.
        program: `package.module:function`. settings: its keyword arguments, a reference wrapped in a list.
        paths: folders in front of the import path. on_gpu: whether ranks hold GPUs.
        patience_s: longest wait for the driver to take reports.
    """

    hub: Any
    number: int
    program: str
    settings: list[Any]
    paths: tuple[str, ...]
    on_gpu: bool
    patience_s: float


class Context:
    """A rank's view of its gang, given to the program.

    Args:
        rank, world_size: as in torch.distributed. device: `cpu` or `cuda:i`.
    """

    def __init__(self, task: Task, rank: int, world_size: int, device: str) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._task = task
        self._pending: Any = None
        self._word = ""

    def report(self, payload: Any) -> str:
        """Send something to the driver, without waiting for it; return the driver's word as of the last report.

        One report is under way at a time, and the driver may be some reports behind.

        Raises:
            TimeoutError: when the driver takes no reports any more.
        """
        self._answer()
        self._pending = self._task.hub.report.remote(self._task.number, self.rank, payload)
        return self._word

    def finish(self) -> None:
        """Wait until the last report has arrived."""
        self._answer()
        self._tell("returned")

    def began(self) -> None:
        """Say that the program is about to run."""
        self._tell("began")

    def failed(self, reason: str, traceback: str) -> None:
        """Say that the program raised, and wait to be ended."""
        self._tell("raised", reason, traceback, timeout_s=HOLD_S)

    def _answer(self) -> None:
        import ray
        from ray.exceptions import GetTimeoutError

        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._word = ray.get(pending, timeout=self._task.patience_s)
        except GetTimeoutError:
            limit = f"{self._task.patience_s:g} s"
            raise TimeoutError(f"the driver took no report of rank {self.rank} within {limit}") from None

    def _tell(self, method: str, *args: Any, timeout_s: float = 60.0) -> None:
        import ray

        ray.get(getattr(self._task.hub, method).remote(self._task.number, self.rank, *args), timeout=timeout_s)


_program_thread: int | None = None


def main(config: Mapping[str, Any]) -> None:
    """Run the program; called by Ray Train on every rank, in a thread of its own."""
    import ray.train

    logging.getLogger().setLevel(logging.WARNING)  # Ray Train lowers it, for its log files
    task: Task = config["task"]
    place = ray.train.get_context()
    perform(task, Context(task, place.get_world_rank(), place.get_world_size(), _device(task.on_gpu)))


def perform(task: Task, context: Context) -> None:
    """Run the program, in the calling thread, and tell the hub how it begins and ends."""
    global _program_thread
    import ray
    from ray.exceptions import RayError

    _program_thread = threading.get_ident()
    try:
        settings = _resolve(ray.get(task.settings[0]))
        function = load(task.program, task.paths)
        context.began()
        function(context, **settings)
        context.finish()
    except (Exception, SystemExit) as error:
        what = raised(error)
        try:
            context.failed(what.reason, what.traceback)
        except RayError:  # held long enough, or the hub is gone and so are we
            raise error from None
        raise


def where(_: Any = None) -> str:
    """Say where this rank's program is just now: `receive, transport.py line 88`."""
    frame = sys._current_frames().get(_program_thread or 0)
    if frame is None:
        return "outside its program"
    while frame.f_back is not None and _is_library(frame.f_code.co_filename):
        frame = frame.f_back
    return f"in {frame.f_code.co_name}, {os.path.basename(frame.f_code.co_filename)} line {frame.f_lineno}"


def _is_library(path: str) -> bool:
    return any(part in path for part in ("site-packages", "dist-packages", "<frozen")) or path.startswith(_STANDARD)


_STANDARD = os.path.dirname(os.__file__)


def _device(on_gpu: bool) -> str:
    if not on_gpu:
        return "cpu"
    import ray.train.torch

    return str(ray.train.torch.get_device())


def _resolve(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put shared values in the place of their references, at the top and one level below."""
    return {name: _value(value, nested=True) for name, value in settings.items()}


def _value(value: Any, nested: bool) -> Any:
    import ray

    if isinstance(value, ray.ObjectRef):
        return ray.get(value)
    if nested and type(value) is dict:
        return {name: _value(inner, nested=False) for name, inner in value.items()}
    if nested and type(value) in (list, tuple):
        return type(value)(_value(inner, nested=False) for inner in value)
    return value
