"""How far copies of `base + t along` move a defence, for many t, at the price of few.

Honest vectors, base and direction are h + 2 vectors, of which all others are combinations: what attackers send, and
what rules make of vectors by weights that inner products tell. So the inner products of the h + 2, taken once, tell the
weights of clipping, of nearest-neighbour mixing and of the geometric median for any t, with matrices [n, n] alone, and
the distance from the mean. Only where order statistics of coordinates come last are vectors computed at all, a block
of coordinates at a time, and no more of them is sorted than tells what is kept; and only where they differ from those
of an earlier t by more than rounding: clipped, `t along` is the same vector for every large t.

It is what the defence itself would say up to rounding: inner products are taken in float64, and not about a reference.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from strategies.robust.base import Context
from strategies.robust.chain import Robust
from strategies.robust.columns import mean_between
from strategies.robust.distances import inner_products

_WIDTH = 16384
"""Columns of a block: its vectors stay in the processor's cache."""
_LARGEST = 1e70
"""Squared lengths up to which no entry of a vector leaves float32."""


def moved_by(
    chain: Robust, context: Context, honest: Tensor, base: Tensor, along: Tensor, num_byzantine: int
) -> Callable[[float], float | None] | None:
    """Return `t -> |defence of the honest vectors and copies of base + t along - mean of the honest vectors|`.

    None where a rule of the chain is not known by weights or order statistics, or a vector is not finite; the function
    returned gives None where `t` makes numbers too large. The defence must then be asked itself.

    Args:
        honest: [h, d]. base, along: [d]. num_byzantine: how many copies.

    Raises:
        ValueError: when there are too few vectors for a rule.
    """
    rule = chain.aggregator
    if any(one.weights is None for one in chain.pre) or (rule.weights is None and rule.kept is None):
        return None
    num = len(honest)
    chain.check(num + num_byzantine, context.num_byzantine)
    parts = torch.cat([honest, base[None], along[None]])
    products = inner_products(parts)
    if not bool(torch.isfinite(products).all()):
        return None
    mean = honest.mean(0)
    centre = torch.zeros(num + 2, dtype=torch.float64)
    centre[:num] = 1.0 / num
    known: list[tuple[Tensor, float]] = []

    def moved(t: float) -> float | None:
        made = torch.zeros(num + num_byzantine, num + 2, dtype=torch.float64)
        made[:num, :num].fill_diagonal_(1.0)
        made[num:, num], made[num:, num + 1] = 1.0, t
        among = made @ products @ made.T
        if not float(among.diagonal().max()) < _LARGEST:
            return None
        for one in chain.pre:
            assert one.weights is not None
            weights = one.weights(among, context)
            made, among = weights @ made, weights @ among @ weights.T
        if rule.weights is not None:
            away = rule.weights(among, context) @ made - centre
            return math.sqrt(max(0.0, float(away @ products @ away)))
        for earlier, distance in known:
            if _same(earlier - made, products, among.diagonal(), torch.finfo(parts.dtype).eps):
                return distance
        assert rule.kept is not None
        distance = _between(parts, made.to(parts), mean, *rule.kept(len(made), context.num_byzantine))
        known.append((made, distance))
        return distance

    return moved


def _same(differences: Tensor, products: Tensor, squares: Tensor, part: float) -> bool:
    """Return whether no vector differs by more than such a part of its length, which is the root of its square."""
    return bool((((differences @ products) * differences).sum(1) <= part**2 * squares).all())


def _between(parts: Tensor, made: Tensor, mean: Tensor, low: int, high: int) -> float:
    """Return how far the mean of each coordinate's order statistics `low:high` of `made @ parts` is from the mean."""
    squared = 0.0
    for first in range(0, parts.shape[1], _WIDTH):
        columns = slice(first, first + _WIDTH)
        away = mean_between(made @ parts[:, columns], low, high) - mean[columns]
        squared += float(away @ away)
    return math.sqrt(squared)
