"""How evenly participations are spread over clients, in numbers that hold for ten clients and for a million."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """How often clients took part.

    Args:
        groups: number of clients by number of participations, ascending; those that never did are under 0.
        gini: 0 when all took part equally often, near 1 when few did everything.
        busiest: part of all participations that the busiest tenth of the clients made.
    """

    num_clients: int
    num_seen: int
    total: int
    groups: Mapping[int, int]
    gini: float
    busiest: float


def at_share(groups: Mapping[int, int], share: float) -> int:
    """Return the value that this share of all have at most, from numbers by value, ascending."""
    rank, before = share * (sum(groups.values()) - 1), 0
    for value, number in groups.items():
        before += number
        if before > rank:
            return value
    return 0


def spread(taken: Mapping[int, int], num_clients: int) -> Spread:
    """Return how evenly clients took part, at the cost of those that did.

    Args:
        taken: participations by client, of those with any.
    """
    groups = Counter(taken.values())
    groups[0] += num_clients - len(taken)
    ordered = {value: groups[value] for value in sorted(groups) if groups[value]}
    total = sum(value * clients for value, clients in ordered.items())
    return Spread(num_clients, len(taken), total, ordered, _gini(ordered, num_clients, total), _busiest(ordered, total))


def even_gini(num_clients: int, num_rounds: int, total: int) -> float | None:
    """Return about what the Gini coefficient would be, had every round drawn its clients evenly at random.

    A client's participations are then binomial, and of two such numbers the mean difference is twice the sum of
    F (1 - F); a draw without replacement makes it larger by the square root of n / (n - 1), the mean over pairs that
    include a client itself smaller by (n - 1) / n. None when clients took part oftener than once a round.
    """
    share = total / (num_clients * num_rounds)
    if share > 1 or not total:
        return None
    if share == 1:
        return 0.0
    times = np.arange(1, num_rounds + 1)
    odds = np.log((num_rounds - times + 1) / times) + math.log(share) - math.log1p(-share)
    logs = num_rounds * math.log1p(-share) + np.concatenate([[0.0], np.cumsum(odds)])
    below = np.minimum(1.0, np.cumsum(np.exp(logs)))
    gini = float((below * (1 - below)).sum()) / (num_rounds * share)
    return gini * math.sqrt((num_clients - 1) / num_clients)


def _gini(groups: Mapping[int, int], num_clients: int, total: int) -> float:
    """Return the Gini coefficient from sorted groups: 2 sum(rank x) / (n sum(x)) - (n + 1) / n."""
    if not total:
        return 0.0
    ranks, before = 0, 0
    for value, clients in groups.items():
        ranks += value * (clients * before + clients * (clients + 1) // 2)
        before += clients
    return max(0.0, 2 * ranks / (num_clients * total) - (num_clients + 1) / num_clients)


def _busiest(groups: Mapping[int, int], total: int) -> float:
    left = math.ceil(sum(groups.values()) / 10)
    done = 0
    for value in sorted(groups, reverse=True):
        done += value * min(left, groups[value])
        left -= min(left, groups[value])
    return done / total if total else 0.0
