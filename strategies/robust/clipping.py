"""Static clipping: every vector is scaled down to a norm of at most `radius`.

Source: Pascanu, Mikolov, Bengio 2013, "On the difficulty of training recurrent neural networks", section 3.2; as a
pre-aggregation in Allouah et al. 2024 (arXiv:2405.14432). The default radius is ByzFL's. ByzFL's writes into
the caller's array; this does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.base import Bound, Context, PreAggregator, positive
from strategies.robust.distances import clipped_to, measured, scaled


def clipping(updates: Tensor, radius: float = 2.0) -> Tensor:
    """Return `x_i min(1, radius / |x_i|)`, [n, d], of the rows without NaN and infinity."""
    positive("clipping", radius=radius)
    updates, squared = measured(updates)
    return scaled(updates, clipped_to(radius, squared))


def build(radius: float = 2.0) -> PreAggregator:
    """Return the rule."""
    positive("clipping", radius=radius)

    def apply(updates: Tensor, context: Context) -> Tensor:
        return clipping(updates, radius)

    def weights(products: Tensor, context: Context) -> Tensor:
        return torch.from_numpy(clipped_to(radius, products.diagonal().numpy())).diag()

    return PreAggregator("clipping", apply, Bound("clipping", 0, 1), weights=weights)
