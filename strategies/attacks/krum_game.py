"""Krum played in advance: would it choose copies of `start - factor * signs` among these honest vectors?

As only one number moves, distances are all that is needed: `||x - start + factor s||^2` is quadratic in the factor, so
a try costs nothing that depends on d. Both variants of Fang's attack on Krum play it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.attacks.moments import seen_from, squared_distances


class Game(NamedTuple):
    """One board.

    Args:
        others: [h, h-1], squared distances of each honest vector to the other honest ones.
        from_start: [h], their squared distances to `start`.
        along: [h], inner products of `x - start` with the signs.
        size: d, the squared length of the signs.
        plain: whether Krum adds distances, instead of squared ones.
    """

    others: Tensor
    from_start: Tensor
    along: Tensor
    size: int
    plain: bool = False

    def chooses(self, factor: float, num_copies: int, num_neighbors: int) -> bool:
        """Return whether the copies score strictly better than every honest vector."""
        to_copies = (self.from_start + 2 * factor * self.along + factor**2 * self.size).clamp(min=0)
        between = torch.cat([self.others, to_copies[:, None].expand(-1, num_copies)], 1)
        own = torch.cat([to_copies.new_zeros(num_copies - 1), to_copies])
        if self.plain:
            between, own = between.sqrt(), own.sqrt()
        best = between.sort(dim=1).values[:, :num_neighbors].sum(1).min()
        return bool(own.sort().values[:num_neighbors].sum() < best)

    def halved(self, factor: float, num_copies: int, num_neighbors: int, threshold: float) -> float:
        """Return the factor, halved until the copies are chosen; below the threshold when they never were.

        Where honest vectors are so long that their squares overflow there is no factor to begin from, and it is 0.
        """
        if not math.isfinite(factor):
            return 0.0
        while factor >= threshold and not self.chooses(factor, num_copies, num_neighbors):
            factor /= 2
        return factor

    def reach(self) -> float:
        """Return the factor at which the crafted vector is as far from the start as the furthest honest one."""
        return math.sqrt(float(self.from_start.max()) / max(1, self.size))


def game(honest: Tensor, start: Tensor, signs: Tensor, plain: bool = False) -> Game:
    """Return the board of honest vectors [h, d] and the direction that copies of the crafted one lie in."""
    num, size = honest.shape
    others = ~torch.eye(num, dtype=torch.bool, device=honest.device)
    distances = squared_distances(honest)[others].reshape(num, num - 1)
    return Game(distances, *seen_from(honest, start, signs), size, plain)
