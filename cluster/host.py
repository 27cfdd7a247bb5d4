"""What runs inside a worker: build the named class once, then call its methods.

It turns whatever user code raises into text where it happens, since an exception class may not exist, or not
unpickle, on the other side. It knows nothing of Ray, so the in-process executor uses it as it stands.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Done(NamedTuple):
    """A call returned: its value and the seconds it took on the worker."""

    value: Any
    seconds_s: float


class Raised(NamedTuple):
    """A call raised: `ValueError: bad shape`, and the traceback from user code downwards."""

    reason: str
    traceback: str


class Host:
    """Holds one instance of a worker class.

    Args:
        environment: variables set before anything of the worker's is imported, such as `OMP_NUM_THREADS`.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        os.environ.update(environment or {})
        self._instance: Any = None

    def build(self, target: str, sys_path: Sequence[str], names: Sequence[str], *values: Any) -> Done | Raised:
        """Import `module:Class` and make the instance, its keyword arguments split into `names` and `values`.

        Returns:
            This worker's node address and process id.
        """
        began = time.perf_counter()
        try:
            self._instance = load(target, sys_path)(**dict(zip(names, values, strict=True)))
        except (Exception, SystemExit) as error:
            return raised(error)
        return Done((address(), os.getpid()), time.perf_counter() - began)

    def call(self, method: str, *args: Any) -> Done | Raised:
        """Call a method of the instance."""
        began = time.perf_counter()
        try:
            value = getattr(self._instance, method)(*args)
        except (Exception, SystemExit) as error:
            return raised(error)
        return Done(value, time.perf_counter() - began)

    def ping(self) -> int:
        """Return this worker's process id."""
        return os.getpid()


def load(target: str, sys_path: Sequence[str]) -> Any:
    """Import `module:name`, with folders put in front of the import path."""
    for folder in reversed(sys_path):
        if folder not in sys.path and os.path.isdir(folder):
            sys.path.insert(0, folder)
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def address() -> str:
    """Return the node's address; empty outside Ray, whose own module is there in every worker of Ray."""
    ray = sys.modules.get("ray")
    return str(ray.util.get_node_ip_address()) if ray is not None and ray.is_initialized() else ""


def raised(error: BaseException) -> Raised:
    """Turn an exception into text, its traceback without the frame that caught it."""
    inner = error.__traceback__.tb_next if error.__traceback__ else None
    lines = traceback.format_exception(type(error), error, inner)
    return Raised(f"{type(error).__name__}: {error}".rstrip(": "), "".join(lines))
