"""The median of each coordinate.

Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018 (arXiv:1803.01498), definition 1. Of an even number of vectors it is the mean of the middle two, as numpy's
and ByzFL's; `torch.median` would take the lower one.
"""

from __future__ import annotations

from torch import Tensor

from strategies.robust.base import Aggregator, Context, majority, screen
from strategies.robust.columns import by_column

_BOUND = majority("median")


def median(updates: Tensor) -> Tensor:
    """Return the median of each coordinate, [d], of the rows without NaN and infinity."""
    return by_column(screen(updates).updates, middle)


def middle(ordered: Tensor) -> Tensor:
    """Return the medians of ascending columns [n, b], [b]."""
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return ordered[half - 1] * 0.5 + ordered[half] * 0.5


def build() -> Aggregator:
    """Return the rule."""

    def apply(updates: Tensor, context: Context) -> Tensor:
        _BOUND(len(updates), context.num_byzantine)
        return median(updates)

    return Aggregator("median", apply, _BOUND, kept=lambda num, f: ((num - 1) // 2, num // 2 + 1))
