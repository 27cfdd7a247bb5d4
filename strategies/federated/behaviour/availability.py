"""When clients can take part: always, by the time of day, in random sessions, and until they stop for ever.

Availability matters when a participation starts. One that has started is finished, unless the client drops out or has
stopped for good by the time it would end.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from strategies.federated.behaviour.base import draws, exponential
from strategies.federated.behaviour.traces import until

Waits = Callable[[int, float], float]

_EPOCH_CYCLES = 8


def always(client: int, now_s: float) -> float:
    """Every client is available."""
    return 0.0


def diurnal(run_seed: int, *, period_s: float, share: float, spread: float = 1.0) -> Waits:
    """Return clients that are available during one stretch of each period, such as the night.

    Args:
        share: of the period that a client is available for.
        spread: of the period over which clients' beginnings are spread evenly; 0: all live in one time zone.
    """
    phase, length = draws(run_seed, "behaviour/phase"), share * period_s

    def waits_s(client: int, now_s: float) -> float:
        begins = phase(client) * spread * period_s - period_s
        turn = math.floor((now_s - begins) / period_s)
        if begins + turn * period_s > now_s:
            turn -= 1
        start = begins + turn * period_s
        return 0.0 if now_s < start + length else until(begins + (turn + 1) * period_s, now_s)

    return waits_s


def sessions(run_seed: int, *, on_s: float, off_s: float) -> Waits:
    """Return clients that come and go: exponential sessions of mean `on_s`, exponential absences of mean `off_s`.

    A client is available with probability `on_s / (on_s + off_s)` at any time. So that a late time costs no more than
    an early one, the process starts afresh, from that probability, every eight mean cycles; being memoryless, it is
    the two-state Markov process everywhere else.
    """
    epoch_s, share = _EPOCH_CYCLES * (on_s + off_s), on_s / (on_s + off_s)
    uniform = draws(run_seed, "behaviour/session")

    def waits_s(client: int, now_s: float) -> float:
        epoch = math.floor(now_s / epoch_s)
        while True:
            ends, at, switch = (epoch + 1) * epoch_s, epoch * epoch_s, 0
            on = uniform(client, epoch, switch) < share
            while at < ends:
                if on and at >= now_s:
                    return until(at, now_s)
                switch += 1
                at += (on_s if on else off_s) * exponential(uniform(client, epoch, switch))
                if on and now_s < min(at, ends):
                    return 0.0
                on = not on
            epoch += 1

    return waits_s


def stopping(run_seed: int, waits: Waits, *, fraction: float, mean_s: float) -> Waits:
    """Return the availability `waits`, of which a fraction of clients leaves for ever.

    Args:
        fraction: of clients that leave at all. mean_s: of the exponential time at which they do.
    """
    uniform = draws(run_seed, "behaviour/stop")

    def waits_s(client: int, now_s: float) -> float:
        chance = uniform(client)
        leaves_s = mean_s * exponential(chance / fraction) if chance < fraction else math.inf
        if now_s >= leaves_s:
            return math.inf
        wait = waits(client, now_s)
        return wait if now_s + wait < leaves_s else math.inf

    return waits_s
