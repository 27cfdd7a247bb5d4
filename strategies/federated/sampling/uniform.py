"""Clients drawn uniformly, as a function of the seed and the round alone."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from strategies.base import Tree
from strategies.federated.sampling.base import Candidates, Sampler, successive


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


def uniform_sampler() -> Sampler:
    """Return uniform draws: those of `uniform`, bit for bit, when nobody is busy or away."""
    return Sampler("uniform", _draw)


def uniformly(
    candidates: Candidates, count: int, rng: np.random.Generator, excluded: Container[int] = frozenset()
) -> list[int]:
    """Draw up to `count` different candidates that are not excluded."""
    size = candidates.num_clients
    return successive(
        lambda n: rng.integers(size, size=n), lambda ids: np.ones(len(ids)), candidates, count, rng, excluded
    )


def _draw(memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator) -> tuple[int, ...]:
    if candidates.available is None and not candidates.busy:
        return uniform(candidates.num_clients, min(count, candidates.num_clients), rng)
    return tuple(sorted(uniformly(candidates, count, rng)))
