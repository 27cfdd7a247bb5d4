"""MOZI: a peer keeps the models nearest to its own, and of those the ones that do as well on examples of its own.

    near     the `share` of the models heard whose distance to the own one is least, rounded up
    good     those of them whose loss is at most that of the own model; where there are none, the one with the least
    result   own_weight * own + (1 - own_weight) * mean of the good

So an attacker has to be near and harmless at once. What the filter cannot tell apart is other data: where peers own
different classes an honest model does badly on what its owner never saw, and is left out.

Source: Guo et al. 2020, "Towards Byzantine-resilient Learning in Decentralized Systems" (arXiv:2002.08569), later
called UBAR; constants as a baseline of Verbraeken et al. 2021 (arXiv:2110.11006): half of the models, half of the own
one, 100 examples. Deviations: models that are no numbers are left out first; where no near model's loss is a number,
the own one stays; distances are from the model that the peer sent last, and the gradient is taken at the mixed model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.robust import finite_rows


class Merged(NamedTuple):
    """A model [d], which of those heard are in it, and how many were no numbers."""

    model: Tensor
    kept: tuple[int, ...]
    num_rejected: int


def mozi(
    own: Tensor, others: Tensor, loss: Callable[[Tensor], float], share: float = 0.5, own_weight: float = 0.5
) -> Merged:
    """Return the own model with those of the others that are near and good.

    Args:
        loss: of a model, on examples of the peer's own.
        share: of the models heard, above 0 and at most 1. own_weight: from 0 to 1.

    Shapes: `own [d]`, `others [n, d]`.

    Raises:
        ValueError: when `share` or `own_weight` is out of its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: above 0 and at most 1")
    if not 0 <= own_weight <= 1:
        raise ValueError(f"own_weight={own_weight}: from 0 to 1")
    known = torch.nonzero(finite_rows(others))[:, 0]
    num_rejected = len(others) - len(known)
    if not len(known):
        return Merged(own, (), num_rejected)
    distances = (others[known] - own).norm(dim=1)
    near = known[torch.argsort(distances, stable=True)[: math.ceil(share * len(known))]].tolist()
    losses = {place: loss(others[place]) for place in near}
    limit = loss(own)
    good = [place for place in near if losses[place] <= limit]
    if not good:
        good = [min(near, key=lambda place: losses[place] if math.isfinite(losses[place]) else math.inf)]
        if not math.isfinite(losses[good[0]]):
            return Merged(own, (), num_rejected)
    mean = others[sorted(good)].mean(0)
    return Merged(own_weight * own + (1 - own_weight) * mean, tuple(sorted(good)), num_rejected)
