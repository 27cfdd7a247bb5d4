"""Tensors as 8-bit numbers in a range for each group of their values.

    alpha, beta     a group's range: its width, and its smallest value
    q               floor((x - beta) 255 / alpha + u), then cut to 0 ... 255; u uniform in [0, 1), or 1/2 for `nearest`
    x^              q alpha / 255 + beta

Inside the range x^ is x in the mean over u. What lies outside becomes the end of the range: a bias, which is the price
of a range that is remembered rather than the tensor's own. Both ends are cut. (The authors' kernel cuts below only, so
that there 270 becomes 14.)

Deviation: u has 256 values, (k + 1/2) / 256: a byte of randomness a number. The mean of x^ is then off by at most
1/512 of a step, and rounding a tensor that was decoded before, in the same range, changes nothing.

Costs, measured on one thread of a busy host for tensors of 2,080 x 768 float32 numbers, in nanoseconds a number: own
range 0.25, encoding 1.7 (to nearest 0.8), decoding 0.35; torch's GELU 0.87, a linear layer of 192 -> 768 17. What that
took: amin and amax, as aminmax is not vectorised along a dimension (2.8); bytes of SFC64 (0.29), not torch.rand (3.5);
int16 on the way from float32 to uint8, which torch converts one by one (0.16 and not 0.56). Blocks of a quarter million
numbers keep what is needed in between at 2 MB; smaller ones are slower.

Source: Mesa, arXiv:2111.11124, section 3.1, equations 1 to 3 (asymmetric, stochastic, per group).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from strategies.activations.groups import Groups

LEVELS = 255
_NOISE = 256
_BLOCK = 1 << 18
_FLAT = 1e-30
"""Below this width a range is a point: its group is decoded as `beta`."""


class Range(NamedTuple):
    """Where the values of each group lie: `beta` to `beta + alpha`. Shapes: `[groups]` both, float32."""

    alpha: Tensor
    beta: Tensor


class Encoded(NamedTuple):
    """A tensor in 8 bits, with all that decoding needs: no range that moves later is read.

    Shapes: levels as the tensor, uint8.
    """

    levels: Tensor
    groups: Groups
    range: Range
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes that are held for it."""
        return self.levels.numel() + 8 * self.groups.number


def own_range(x: Tensor, groups: Groups) -> Range:
    """Return the smallest range of each group that holds all its values."""
    seen = x.detach().reshape(groups.view) if x.dim() != len(groups.view) else x.detach()
    others = [dim for dim in range(seen.dim()) if dim != groups.dim]
    low, high = seen.amin(others).float(), seen.amax(others).float()
    if groups.number != len(low):
        lengths = groups.lengths()
        if len(set(lengths)) == 1:
            low, high = low.view(groups.number, -1).amin(1), high.view(groups.number, -1).amax(1)
        else:
            low = torch.stack([part.amin() for part in torch.split(low, lengths)])
            high = torch.stack([part.amax() for part in torch.split(high, lengths)])
    return Range(high - low, low)


@torch.no_grad()
def encode(x: Tensor, groups: Groups, given: Range, seed: int | None) -> Encoded:
    """Return a tensor in 8 bits.

    Args:
        given: the range of each group, its own or another. seed: of the stochastic rounding; None rounds to nearest.

    Shapes: x any whose view is `groups.view`, of a floating-point type; computed in float32.
    """
    x = x.detach()
    offset = 0.5 if seed is None else 0.5 / _NOISE
    scale = torch.where(given.alpha > _FLAT, LEVELS / given.alpha, torch.zeros_like(given.alpha))
    low, factor = groups.spread(given.beta - offset * given.alpha / LEVELS), groups.spread(scale)
    levels = torch.empty_like(x, dtype=torch.uint8)
    noise = None if seed is None else _Noise(x.device, seed)
    source, target = x.view(groups.view), levels.view(groups.view)
    for rows in _blocks(groups.view):
        value = torch.sub(source[rows], _part(low, rows)).float()
        value.mul_(_part(factor, rows))
        if noise is not None:
            value.add_(noise.draw(value.numel()).view(value.shape), alpha=1 / _NOISE)
        value.clamp_(0, LEVELS)
        target[rows].copy_(value.to(torch.int16) if value.device.type == "cpu" else value)
    return Encoded(levels, groups, given, x.dtype)


@torch.no_grad()
def decode(encoded: Encoded) -> Tensor:
    """Return the tensor that an encoded one stands for, in its type and with the layout of its levels."""
    levels, groups, given, dtype = encoded
    scale, low = groups.spread(given.alpha / LEVELS), groups.spread(given.beta)
    if dtype == torch.float32:
        value = levels.to(torch.float32)
        view = value.view(groups.view)
        if groups.dim == len(groups.view) - 1:
            torch.addcmul(low, view, scale, out=view)
        else:  # addcmul is not vectorised where a row has one number of each of the two: 0.9 instead of 0.4 ns
            view.mul_(scale).add_(low)
        return value
    value = torch.empty_like(levels, dtype=dtype)
    source, target = levels.view(groups.view), value.view(groups.view)
    for rows in _blocks(groups.view):
        target[rows].copy_(torch.addcmul(_part(low, rows), source[rows].float(), _part(scale, rows)))
    return value


class _Noise:
    """Random bytes, for a tensor's numbers in the order of their indices, however they lie in memory."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = device
        self._words = np.random.SFC64(seed) if device.type == "cpu" else None
        self._source = None if self._words is not None else torch.Generator(device).manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        """Return the next so many."""
        if self._words is not None:
            return torch.from_numpy(self._words.random_raw(-(-count // 8)).view(np.uint8))[:count]
        return torch.randint(0, 256, (count,), dtype=torch.uint8, device=self._device, generator=self._source)


def _blocks(view: tuple[int, ...]) -> Iterator[slice]:
    """Yield stretches of the first dimension that hold about `_BLOCK` numbers each."""
    each = 1
    for size in view[1:]:
        each *= size
    rows = max(1, _BLOCK // max(1, each))
    for start in range(0, view[0], rows):
        yield slice(start, start + rows)


def _part(spread: Tensor, rows: slice) -> Tensor:
    return spread if spread.shape[0] == 1 else spread[rows]
