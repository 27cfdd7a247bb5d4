"""The geometric median, approximately: a few steps of the smoothed Weiszfeld algorithm.

Source: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning" (RFA), IEEE TSP 2022
(arXiv:1912.13445), Algorithm 2 with equal weights: `z <- sum_i beta_i x_i / sum_i beta_i` with
`beta_i = 1 / max(smoothing, |x_i - z|)`. Defaults are ByzFL's: 3 steps from 0 with smoothing 0.1.

From 0 and with few steps the result does not move along when all vectors are moved; `start` and `num_iterations`
mend that. Norms are kept in float64, so a vector of 1e30 weighs 1e-30, not NaN.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from strategies.robust.base import Aggregator, Context, majority, positive, vector
from strategies.robust.distances import measured, squared_lengths, weighted_sum

_BOUND = majority("geometric_median")


def geometric_median(
    updates: Tensor, smoothing: float = 0.1, num_iterations: int = 3, start: Tensor | None = None
) -> Tensor:
    """Return the smoothed Weiszfeld estimate, [d], of the rows without NaN and infinity.

    Args:
        updates: [n, d].
        smoothing: nu, the distance below which a vector's weight grows no more; above 0.
        num_iterations: T, at least 1.
        start: [d], where the steps begin; None for 0.
    """
    _arguments(smoothing, num_iterations)
    updates, own = measured(updates)
    estimate = None if start is None else vector(start, updates, "start")
    for _ in range(num_iterations):
        beta = 1.0 / np.sqrt(squared_lengths(updates, estimate, own)).clip(min=smoothing)
        estimate = weighted_sum(updates, beta / beta.sum())
    assert estimate is not None
    return estimate


def _weights(products: np.ndarray, smoothing: float, num_iterations: int) -> np.ndarray:
    """Return what the estimate weighs each vector with, [n], from their inner products: the steps from 0."""
    own = squared = products.diagonal()
    shares = np.zeros(len(own))
    for _ in range(num_iterations):
        beta = 1.0 / np.sqrt(squared.clip(min=0.0)).clip(min=smoothing)
        shares = beta / beta.sum()
        along = products @ shares
        squared = own - 2.0 * along + shares @ along
    return shares


def _arguments(smoothing: float, num_iterations: int) -> None:
    positive("geometric_median", smoothing=smoothing, num_iterations=num_iterations)


def build(smoothing: float = 0.1, num_iterations: int = 3) -> Aggregator:
    """Return the rule."""
    _arguments(smoothing, num_iterations)

    def apply(updates: Tensor, context: Context) -> Tensor:
        _BOUND(len(updates), context.num_byzantine)
        return geometric_median(updates, smoothing, num_iterations)

    def weights(products: Tensor, context: Context) -> Tensor:
        return torch.from_numpy(_weights(products.numpy(), smoothing, num_iterations))

    return Aggregator("geometric_median", apply, _BOUND, weights=weights)
