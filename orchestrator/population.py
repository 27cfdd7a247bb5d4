"""Population-based training: who goes on, who copies whom, as a pure function of the values at the end of an interval.

    interval      1         2         3
    member 0   trial 0 ========================>         good: goes on
    member 1   trial 1 ========   trial 4 =====>         poor after 2: copies trial 0's weights, varies its fields
    member 2   trial 2 ===  trial 3 ===========>         poor after 1: copies trial 1's, varies its fields

A copy is a new trial, so every run directory has one set of parameters from its first round to its last. Members meet
at the end of each interval, unlike in the paper, where they are compared as they come: in return the same seed gives
the same search, and one that was killed goes on as if it had not been. Left out: running the trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.search import Domain
from orchestrator.search_space import explore
from strategies.seeds import generator

_ATTEMPTS = 10


@dataclass(frozen=True)
class Member:
    """A place in the population, and the trial that holds it now.

    Args:
        number: the trial. donor, step: the trial whose checkpoint after which round it began with, if any.
    """

    number: int
    params: Mapping[str, Any]
    donor: int | None = None
    step: int = 0


def intervals(rounds: int, interval: int) -> list[int]:
    """Return the rounds after which members meet; the last is the end."""
    return [*range(interval, rounds, interval), rounds]


def next_generation(
    members: Sequence[Member],
    values: Sequence[float | None],
    *,
    step: int,
    mode: str,
    quantile: float,
    space: Mapping[str, Domain],
    seed: int,
    next_number: int,
) -> list[Member]:
    """Return the population after a meeting: the worst are replaced by variations of the best, the others go on.

    Args:
        values: of each member, None when it failed; failed members are always replaced.
        step: the round they met after. next_number: the first trial number that is free.

    Raises:
        ValueError: when every member failed.

    Source: Jaderberg et al. (2017), section 4.1.1, "Truncation selection": a member in the bottom part copies one
        drawn uniformly from the top part.
    """
    sign = 1.0 if mode == "max" else -1.0
    alive = [place for place, value in enumerate(values) if value is not None]
    if not alive:
        raise ValueError("no member of the population is left")
    scores = {place: sign * float(values[place] or 0.0) for place in alive}
    best_first = sorted(alive, key=lambda place: (-scores[place], place))
    count = max(1, int(len(members) * quantile))
    donors = best_first[:count]
    poor = set(best_first[len(best_first) - count :]) - set(donors)
    population: list[Member] = []
    for place, member in enumerate(members):
        rng = generator(seed, "search explore", step, place)
        donor = donors[int(rng.integers(len(donors)))]
        if place in scores and (place not in poor or scores[place] >= scores[donor]):
            population.append(member)
            continue
        source = members[donor]
        taken = [other.params for other in (*members, *population)]
        for _ in range(_ATTEMPTS):  # equal parameters on equal weights would train the same bits twice
            params = explore(source.params, space, rng)
            if params not in taken:
                break
        population.append(Member(next_number, params, source.number, step))
        next_number += 1
    return population
