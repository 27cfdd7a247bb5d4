"""When clients start and when the server acts: what tells one kind of federated round from another.

The engine asks a pacing who starts now, then hands it finished participations one by one, in virtual time, until
the pacing says that the server acts. A synchronous round is the barrier: its cohort starts together, and the
server waits for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from strategies.federated.clock import Ticket


class Pacing(NamedTuple):
    """When participations start and end in a server step.

    Args:
        starters: `step -> clients` that receive the model as the step begins.
        ready: `(step, finished tickets) -> bool`, asked after each finish; True lets the server act on them.
    """

    starters: Callable[[int], Sequence[int]]
    ready: Callable[[int, Sequence[Ticket]], bool]


def barrier(cohort_of: Callable[[int], Sequence[int]]) -> Pacing:
    """Return synchronous rounds: `cohort_of(step)` starts, and the server acts when all of it has finished."""
    return Pacing(cohort_of, lambda step, finished: len(finished) == len(cohort_of(step)))
