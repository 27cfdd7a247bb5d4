"""How fast virtual clients are, and how long a participation therefore takes on the virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from strategies.federated.behaviour.base import classes
from strategies.federated.behaviour.traces import Trace
from strategies.seeds import generator

_REMEMBERED = 1 << 16


def constant_speed(run_seed: int, client: int) -> float:
    """Every client runs at speed 1."""
    return 1.0


def lognormal_speed(run_seed: int, client: int, *, sigma: float) -> float:
    """A client's speed is `exp(sigma * z)` with `z` standard normal, drawn once for the client: median 1."""
    return math.exp(sigma * float(generator(run_seed, "speed", client).standard_normal()))


def constant(run_seed: int) -> Callable[[int], float]:
    """Return speed 1 for every client."""
    return partial(constant_speed, run_seed)


def lognormal(run_seed: int, *, sigma: float) -> Callable[[int], float]:
    """Return `lognormal_speed`, remembering the clients that were asked for last: a draw takes some 15 us."""
    return lru_cache(_REMEMBERED)(partial(lognormal_speed, run_seed, sigma=sigma))


def by_class(run_seed: int, *, shares: Sequence[int], speeds: Sequence[float]) -> Callable[[int], float]:
    """Return the speed of a client's class: shares (1, 1) and speeds (5, 1) are 5:1 biased arrivals.

    Raises:
        ValueError: when a speed is not above 0.
    """
    if len(shares) != len(speeds) or min(speeds, default=0) <= 0:
        raise ValueError(f"each class needs a speed above 0, got {list(speeds)} for {len(shares)} classes")
    of = classes(run_seed, shares)
    return lambda client: speeds[of(client)]


def traced(trace: Trace) -> Callable[[int], float]:
    """Return the speeds of a trace's devices.

    Raises:
        ValueError: when the trace has none.
    """
    speeds = trace.speed
    if speeds is None:
        raise ValueError("the trace has no speeds")
    return lambda client: float(speeds[client % len(speeds)])


def duration_s(num_steps: int, *, step_s: float, speed: float) -> float:
    """Virtual seconds that `num_steps` local steps take: `num_steps * step_s / speed`."""
    return num_steps * step_s / speed


def communication_s(
    downlink_bytes: int, uplink_bytes: int, *, downlink_bytes_per_s: float | None, uplink_bytes_per_s: float | None
) -> float:
    """Virtual seconds that a participation's transfers take; a direction without a bandwidth takes none."""
    down = downlink_bytes / downlink_bytes_per_s if downlink_bytes_per_s else 0.0
    return down + (uplink_bytes / uplink_bytes_per_s if uplink_bytes_per_s else 0.0)
