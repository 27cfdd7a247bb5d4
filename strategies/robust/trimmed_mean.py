"""The trimmed mean: of each coordinate, without its f largest and its f smallest numbers.

Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018 (arXiv:1803.01498), definition 2, with beta = f / n.
"""

from __future__ import annotations

from torch import Tensor

from strategies.robust.base import Aggregator, Context, admit, majority
from strategies.robust.columns import by_column
from strategies.robust.mean import mean

_BOUND = majority("trimmed_mean")


def trimmed_mean(updates: Tensor, num_byzantine: int) -> Tensor:
    """Return the mean of each coordinate's n - 2f middle numbers, [d]; needs n > 2f."""
    updates, f = admit(updates, num_byzantine, _BOUND)
    if not f:
        return mean(updates)
    weights = updates.new_zeros(len(updates))
    weights[f : len(updates) - f] = 1.0 / (len(updates) - 2 * f)
    return by_column(updates, lambda ordered: weights @ ordered)


def build() -> Aggregator:
    """Return the rule."""

    def apply(updates: Tensor, context: Context) -> Tensor:
        return trimmed_mean(updates, context.num_byzantine)

    return Aggregator("trimmed_mean", apply, _BOUND, kept=lambda num, f: (f, num - f))
