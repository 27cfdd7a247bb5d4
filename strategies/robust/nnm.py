"""Nearest-neighbour mixing: every vector becomes the mean of the n - f vectors nearest to it.

Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML
under Heterogeneity", AISTATS 2023 (arXiv:2302.01772). A vector is the nearest to itself. One product
of an [n, n] matrix of choices with the updates makes all n means; no [n, n - f, d] is gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor

from strategies.robust.base import Context, PreAggregator, admit, majority
from strategies.robust.distances import distances_among, empty, squared_distances

_BOUND = majority("nnm")


def nearest_neighbor_mixing(updates: Tensor, num_byzantine: int) -> Tensor:
    """Return the mixed vectors, [n, d], of the rows without NaN and infinity; needs n > 2f."""
    updates, f = admit(updates, num_byzantine, _BOUND)
    shares = _shares(squared_distances(updates), f)
    return torch.mm(shares.to(updates), updates, out=empty(len(updates), updates))


def _shares(squared: Tensor, num_byzantine: int) -> Tensor:
    """Return how much of each vector is in each mean, [n, n], from the squared distances, which are overwritten."""
    num_near = len(squared) - num_byzantine
    nearest = squared.fill_diagonal_(-1.0).topk(num_near, largest=False, sorted=False).indices
    return torch.zeros_like(squared).scatter_(1, nearest, 1.0 / num_near)


def build() -> PreAggregator:
    """Return the rule."""

    def apply(updates: Tensor, context: Context) -> Tensor:
        return nearest_neighbor_mixing(updates, context.num_byzantine)

    def weights(products: Tensor, context: Context) -> Tensor:
        return _shares(distances_among(products), context.num_byzantine)

    return PreAggregator("nnm", apply, _BOUND, weights=weights)
