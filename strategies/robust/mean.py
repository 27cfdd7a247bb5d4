"""The mean: what robust rules replace, and what they are measured against. One Byzantine vector moves it anywhere.

Source: McMahan et al. 2017 (FedAvg), Algorithm 1, which weighs by numbers of examples. Not screened: NaN and infinity
in one vector are NaN or infinity in the result. (The chain `Robust` screens before any rule, this one too.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.base import Aggregator, Bound, Context, matrix
from strategies.robust.distances import weighted_sum

_BOUND = Bound("mean", 0, 1)


def mean(updates: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return `sum_i w_i x_i / sum_i w_i`, [d].

    Args:
        updates: [n, d].
        weights: [n], at least 0 and not all 0; None for equal ones.

    Raises:
        ValueError: when the weights are none.
    """
    updates = matrix(updates)
    num = updates.shape[0]
    if weights is None:
        return updates.new_full((num,), 1.0 / num) @ updates  # what `weighted_sum` does, and no array to begin from
    if weights.shape != (num,) or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError(f"mean: weights are {list(weights.shape)}; expected [{num}] finite numbers of at least 0")
    asked = weights.detach().double().cpu().numpy()
    total = asked.sum()
    if not total > 0:
        raise ValueError(f"mean: all {num} weights are 0; at least one must be above")
    return weighted_sum(updates, asked / total)


def build() -> Aggregator:
    """Return the rule."""

    def apply(updates: Tensor, context: Context) -> Tensor:
        return mean(updates, context.weights)

    return Aggregator("mean", apply, _BOUND)
