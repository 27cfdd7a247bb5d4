"""What a Ray error means: a worker that is gone, so its call may run elsewhere, or a failure that would recur.

After a node is cut off, its actors first seem unavailable and are declared dead later; both count as gone.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from cluster.host import Done, Raised

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

MEMORY = "its node ran out of memory; give workers more memory, or have fewer on a node"


class Lost(NamedTuple):
    """The worker is gone; why, in one line, and whether its whole node is."""

    reason: str
    node: bool = False


Outcome = Done | Raised | Lost


def outcome(ref: Any, timeout_s: float) -> Outcome:
    """Fetch what a call on a worker came to; the reference is ready."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        value: Done | Raised = ray.get(ref, timeout=timeout_s)
        return value
    except GetTimeoutError:
        return Lost(f"its answer could not be fetched within {timeout_s:g} s")
    except RayError as error:
        return classify(error)


def classify(error: Exception) -> Raised | Lost:
    """Tell a lost worker from a call that failed."""
    from ray import exceptions as rays

    if isinstance(error, rays.OutOfMemoryError):
        return Lost(MEMORY)
    if isinstance(error, rays.RayActorError) and error.actor_init_failed:
        return Raised(
            "the worker process could not start; is this project installed on every node, in the same version?",
            _COLOUR.sub("", str(error)),
        )
    if isinstance(error, rays.RayActorError):
        return _why(str(error))
    if isinstance(error, rays.NodeDiedError):
        return Lost("its node died", node=True)
    if isinstance(error, (rays.ObjectLostError, rays.WorkerCrashedError)):
        return Lost(str(error).strip().splitlines()[0])
    if isinstance(error, rays.RayTaskError):
        cause = error.cause
        return Raised(f"{type(cause).__name__}: {cause}".rstrip(": "), _COLOUR.sub("", str(error)))
    return Raised(f"{type(error).__name__}: {error}", "")


def _why(text: str) -> Lost:
    """Find in Ray's long account why an actor died."""
    if "connection error code 2" in text:
        return Lost("its process was killed or crashed; the kernel also kills when memory runs out")
    if re.search(r"low on memory|memory pressure|NODE_OUT_OF_MEMORY", text):
        return Lost(MEMORY)
    if re.search(r"node was terminated|node has died|node is dead|raylet died", text, re.IGNORECASE):
        return Lost("its node died", node=True)
    if "unavailable" in text:
        return Lost("it does not answer; its node may be cut off", node=True)
    return Lost(next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it died"))
