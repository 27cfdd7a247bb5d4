"""How fast virtual clients are: models of the time one participation takes on the virtual clock."""

from __future__ import annotations

import math

from strategies.seeds import generator


def constant_speed(run_seed: int, client: int) -> float:
    """Every client runs at speed 1."""
    return 1.0


def lognormal_speed(run_seed: int, client: int, *, sigma: float) -> float:
    """A client's speed is `exp(sigma * z)` with `z` standard normal, drawn once for the client: median 1."""
    return math.exp(sigma * float(generator(run_seed, "speed", client).standard_normal()))


def duration_s(num_steps: int, *, step_s: float, speed: float) -> float:
    """Virtual seconds that `num_steps` local steps take: `num_steps * step_s / speed`."""
    return num_steps * step_s / speed
