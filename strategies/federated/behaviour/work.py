"""What a client decides about a participation: how many local steps, whether it vanishes, how long it rests after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from strategies.federated.behaviour.base import classes, draws, exponential, normal

# -- local steps -----------------------------------------------------------------------------------------------------


def steps_of_settings(client: int, order: int) -> None:
    """Leave the number of local steps to the client's settings."""
    return


def uniform_steps(run_seed: int, *, low: int, high: int) -> Callable[[int, int], int]:
    """Return a whole number from `low` to `high`, both included, drawn for each participation.

    Raises:
        ValueError: when `1 <= low <= high` does not hold.
    """
    if not 1 <= low <= high:
        raise ValueError(f"steps lie between low >= 1 and high >= low, got {low} and {high}")
    uniform = draws(run_seed, "behaviour/steps")
    return lambda client, order: low + int((high - low + 1) * uniform(client, order))


def lognormal_steps(run_seed: int, *, median: float, sigma: float) -> Callable[[int, int], int]:
    """Return `median * exp(sigma * z)` rounded, at least 1, drawn for each participation."""
    uniform = draws(run_seed, "behaviour/steps")
    return lambda client, order: max(1, round(median * math.exp(sigma * normal(uniform(client, order)))))


def steps_by_speed(speed: Callable[[int], float], *, steps: float) -> Callable[[int, int], int]:
    """Return `steps * speed` rounded, at least 1: fast clients do more, and all take about as long."""
    return lambda client, order: max(1, round(steps * speed(client)))


# -- dropout ---------------------------------------------------------------------------------------------------------


def never_drops(client: int, order: int) -> bool:
    """No client vanishes."""
    return False


def dropout(run_seed: int, rate: float) -> Callable[[int, int], bool]:
    """Return whether a client vanishes in the middle of a participation: with probability `rate`, each time anew."""
    uniform = draws(run_seed, "behaviour/dropout")
    return lambda client, order: uniform(client, order) < rate


# -- pauses ----------------------------------------------------------------------------------------------------------


def constant_pause(seconds: float) -> Callable[[int, int], float]:
    """Return pauses of one length."""
    return lambda client, order: seconds


def exponential_pause(run_seed: int, *, mean_s: float) -> Callable[[int, int], float]:
    """Return exponential pauses: a client's arrivals are a Poisson process when its work takes no time."""
    uniform = draws(run_seed, "behaviour/pause")
    return lambda client, order: mean_s * exponential(uniform(client, order))


def lognormal_pause(run_seed: int, *, median_s: float, sigma: float) -> Callable[[int, int], float]:
    """Return pauses of `median_s * exp(sigma * z)`."""
    uniform = draws(run_seed, "behaviour/pause")
    return lambda client, order: median_s * math.exp(sigma * normal(uniform(client, order)))


def pause_by_class(
    run_seed: int, pause_s: Callable[[int, int], float], *, shares: Sequence[int], factors: Sequence[float]
) -> Callable[[int, int], float]:
    """Return `pause_s` times the factor of a client's class: factors (1, 5) bias arrivals towards the first class.

    Raises:
        ValueError: when a factor is not above 0.
    """
    if len(shares) != len(factors) or min(factors, default=0) <= 0:
        raise ValueError(f"each class needs a factor above 0, got {list(factors)} for {len(shares)} classes")
    of = classes(run_seed, shares)
    return lambda client, order: factors[of(client)] * pause_s(client, order)
