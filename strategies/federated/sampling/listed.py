"""Cohorts without chance: the same clients in every round, or all clients in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

from strategies.base import Tree
from strategies.federated.sampling.base import Candidates, Sampler


def fixed_sampler(clients: Sequence[int]) -> Sampler:
    """Return the first `count` of the named clients that can start.

    Raises:
        ValueError: when there are none, or one is named twice or below 0. Drawing raises it for ids that do not exist.
    """
    if not clients or len(set(clients)) != len(clients) or min(clients) < 0:
        raise ValueError(f"fixed clients are different ids from 0, at least one, got {list(clients)}")

    def draw(memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator) -> tuple[int, ...]:
        if max(clients) >= candidates.num_clients:
            raise ValueError(f"client {max(clients)} is fixed, but there are {candidates.num_clients} clients")
        return _first(clients, candidates, count)

    return Sampler("fixed", draw, among=tuple(clients))


def round_robin_sampler() -> Sampler:
    """Return all clients in turn: step `t` begins at client `t * count`, and those who cannot start are passed over."""

    def draw(memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator) -> tuple[int, ...]:
        size = candidates.num_clients
        begin = step * count % size
        return _first(((begin + index) % size for index in range(size)), candidates, count)

    return Sampler("round-robin", draw)


def _first(clients: Iterable[int], candidates: Candidates, count: int) -> tuple[int, ...]:
    return tuple(sorted(islice((client for client in clients if candidates.has(client)), count)))
