"""Clients drawn in proportion to their numbers of examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from strategies.base import Tree
from strategies.federated.sampling.base import Candidates, Ids, Sampler, successive


def weighted_sampler() -> Sampler:
    """Return draws without replacement, each in proportion to the examples of those not drawn yet.

    Clients without examples are never drawn. Averaging such cohorts with equal weights estimates the average of all
    examples without bias when draws are with replacement, and nearly so in small cohorts without.
    Source: Li et al. 2020, "On the convergence of FedAvg on non-iid data", section 3.3, scheme I (there with
    replacement; here a client takes part once in a round).
    """

    def draw(memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator) -> tuple[int, ...]:
        return tuple(sorted(by_size(candidates, count, rng)))

    return Sampler("weighted", draw)


def by_size(candidates: Candidates, count: int, rng: np.random.Generator) -> list[int]:
    """Draw up to `count` different candidates in proportion to their examples, in the order drawn.

    The sums of sizes are made once a population; after that the cost is `O(count log num_clients)`.
    """
    sums = _sums(candidates.sizes, candidates.num_clients)
    if sums[-1] == 0:
        return []

    def propose(number: int) -> Ids:
        return np.searchsorted(sums, rng.integers(sums[-1], size=number), side="right").astype(np.int64)

    return successive(propose, lambda ids: candidates.sizes(ids).astype(np.float64), candidates, count, rng)


@lru_cache(maxsize=2)
def _sums(sizes: Callable[[Ids], NDArray[np.int64]], num_clients: int) -> NDArray[np.int64]:
    return np.cumsum(sizes(np.arange(num_clients)), dtype=np.int64)
