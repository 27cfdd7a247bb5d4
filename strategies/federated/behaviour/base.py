"""What a behaviour is: five questions that a client answers for itself, and cheap random numbers for the answers.

A behaviour costs nothing until it is asked, so a million clients cost no more than those that are met. Each answer
is a function of (run seed, purpose, client[, participation]): it does not depend on what was asked before.
`strategies.seeds` gives one 64-bit key a purpose; the numbers below a key come from a counter-based hash, because
building a `SeedSequence` for each takes some ten times as long (about 15 us against 1.5) and an anarchic run
asks several questions an event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

from strategies.seeds import integer


class Behaviour(NamedTuple):
    """How clients behave on the virtual clock.

    Args:
        speed: `client -> speed`, above 0; 1 is what `step_s` is measured at.
        num_steps: `(client, order) -> local steps` of a participation; None: as the client's settings say.
        drops: `(client, order) -> whether` the client vanishes in the middle of a participation.
        pause_s: `(client, order) -> seconds` a free-running client rests before its next participation.
        waits_s: `(client, now_s) -> seconds` until the client is available; 0 now, inf never again.

    An `order` is the number of a participation (`Ticket.order`), unique in a run.
    """

    speed: Callable[[int], float]
    num_steps: Callable[[int, int], int | None]
    drops: Callable[[int, int], bool]
    pause_s: Callable[[int, int], float]
    waits_s: Callable[[int, float], float]


_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_INVERSE = NormalDist().inv_cdf


def draws(run_seed: int, purpose: str) -> Callable[..., float]:
    """Return `(*indices) -> u`, uniform in (0, 1) without its ends, with 52 bits.

    Source: SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", Figure 13: each
    index splits the stream once more. The key is the purpose's from `strategies.seeds`.
    """
    key = integer(run_seed, purpose)

    def uniform(*indices: int) -> float:
        state = key
        for index in indices:
            state = (state + _GOLDEN * (index + 1)) & _MASK
            state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
            state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
            state ^= state >> 31
        return ((state >> 12) + 0.5) * 2.0**-52

    return uniform


def normal(uniform: float) -> float:
    """Return the standard normal quantile of a number in (0, 1)."""
    return _INVERSE(uniform)


def exponential(uniform: float) -> float:
    """Return the quantile of the exponential distribution with mean 1."""
    return -math.log1p(-uniform)


def classes(run_seed: int, shares: Sequence[int]) -> Callable[[int], int]:
    """Return `client -> class`: of each `sum(shares)` consecutive clients, exactly `shares[k]` are of class `k`.

    Which of them is drawn, so that ten clients of two equal classes are five and five, and yet classes do not follow
    the order in which clients were given their data. All models of a run share the draws: with equal shares, a client
    in the first class of speeds is in the first class of pauses.

    Raises:
        ValueError: when there is no class, or a share is not a whole number above 0.
    """
    if not shares or any(share != int(share) or share < 1 for share in shares):
        raise ValueError(f"classes need whole shares above 0, got {list(shares)}")
    divisor = math.gcd(*map(int, shares))
    members = [index for index, share in enumerate(shares) for _ in range(int(share) // divisor)]
    uniform = draws(run_seed, "behaviour/class")

    @lru_cache(1 << 14)
    def block(number: int) -> list[int]:
        first = number * len(members)
        order = sorted(range(len(members)), key=lambda place: uniform(first + place))
        return [members[place] for place in order]

    return lambda client: block(client // len(members))[client % len(members)]
