"""Which clients take part in a round, as a function of the seed and the round alone."""

from __future__ import annotations

import numpy as np


def uniform(num_clients: int, cohort: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw `cohort` different clients uniformly; return their ids in ascending order.

    The cost is that of the cohort, not of the population. Source: McMahan et al. 2017, Algorithm 1, `S_t`.

    Raises:
        ValueError: when the cohort is empty or larger than the population.
    """
    if not 1 <= cohort <= num_clients:
        raise ValueError(f"a cohort of {cohort} cannot be drawn from {num_clients} clients")
    if cohort == num_clients:
        return tuple(range(num_clients))
    return tuple(sorted(int(client) for client in rng.choice(num_clients, size=cohort, replace=False, shuffle=False)))
