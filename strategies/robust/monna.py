"""MoNNA's aggregation: a peer averages the n - f vectors nearest to its own.

Source: Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear Gradient
Overhead", ICML 2023 (arXiv:2209.10931), nearest-neighbour averaging. `updates` include the peer's own.
The rule trusts the own vector and nothing else. Without one, row 0 is taken for it, as ByzFL does: a server that has
no vector of its own should use another rule.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from strategies.robust.base import Aggregator, Context, lowered, majority, matrix, screen, vector
from strategies.robust.distances import mean_of, squared_lengths

_BOUND = majority("monna")


def monna(updates: Tensor, num_byzantine: int, own: Tensor | None = None) -> Tensor:
    """Return the mean of the n - f vectors nearest to the own, [d]; needs n > 2f.

    Args:
        updates: [n, d], the own vector among them.
        num_byzantine: f.
        own: [d]; None for row 0.

    Raises:
        ValueError: also when the own vector holds NaN or infinity.
    """
    updates, f = matrix(updates), num_byzantine
    num = updates.shape[0]
    _BOUND(num, f)
    pivot = vector(updates[0] if own is None else own, updates, "own")
    squared = squared_lengths(updates, pivot)
    if not math.isfinite(squared.sum()):  # some vector is no numbers
        updates = screen(updates).updates
        f = lowered(f, num, updates.shape[0], _BOUND)
        squared = squared_lengths(updates, pivot)
    return mean_of(updates, np.argsort(squared, kind="stable")[: len(squared) - f])


def build() -> Aggregator:
    """Return the rule; `context.own` is the own vector."""

    def apply(updates: Tensor, context: Context) -> Tensor:
        return monna(updates, context.num_byzantine, context.own)

    return Aggregator("monna", apply, _BOUND, needs_own=True)
