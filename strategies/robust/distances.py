"""The one Gram matrix behind every rule that looks at distances between vectors, and distances to a point.

For n vectors of length d nothing larger than n x n and a block of columns is ever held beside the input, so a thousand
vectors of a million numbers pass. Three things spoil `|x|^2 + |y|^2 - 2 x.y` in the hands of the careless:

- Cancellation, when vectors lie close together and far from 0, as models do. So products are taken about a reference,
  the vector nearest to most others, whenever the first look says that most vectors are farther from 0 than from each
  other. Whether and what to take is decided by medians, so a minority of Byzantine vectors has no say in it.
- Rounding. Blocks are summed in float64; within a block float32 is multiplied as float32, to about 1e-6 of
  `|x - reference|^2`. float64 is float64 throughout.
- Overflow. Float32 entries of 1e30 have no square in float32, and infinity less infinity is NaN. Products among the
  others never touch those rows; what is NaN in the end becomes the distance infinity. `gram(finite=True)` takes the
  products in float64 instead, in which no float32 overflows. Float64 entries beyond 1e150 are infinitely far.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from strategies.robust.base import matrix, screen

_BLOCK = 4096
"""Columns multiplied at once: few enough that a block's rounding stays near 1e-6."""
_ROWS = 64
"""Rows of a panel; only panels on and below the diagonal are multiplied."""
_FAR = 16.0
"""How often the median squared distance among vectors their median square may be before products are centred."""
_SAFE = (1e-20, 1e30)
"""Squared lengths within which float32 neither overflows nor loses small entries."""
_SLICE = 1 << 16
"""Columns of a product with one vector."""
_PART = 10_000
"""Columns of a square; numpy's dot product splits more of them among threads, and the bits would show it."""
_SMALL = 1 << 19
"""Numbers up to which differences are quicker than a product."""
_LEFT = 0.1
"""The part of `|x|^2 + |c|^2` that must be left in `|x - c|^2`, lest rounding shows."""


def gram(updates: Tensor, *, finite: bool = False) -> Tensor:
    """Return `(x_i - r).(x_j - r)` about some reference r, [n, n] float64 on the CPU.

    What is computed from it must not depend on r: distances, centred products, eigenvalues of covariances.

    Args:
        updates: [n, d] without NaN and infinity.
        finite: insist on finite products where float32 overflows; else those are infinite or NaN.
    """
    return _gram(updates, finite)[0]


def squared_distances(updates: Tensor) -> Tensor:
    """Return `|x_i - x_j|^2`, [n, n] float64 on the CPU: 0 on the diagonal, never NaN, infinity beyond the range."""
    return _gram(updates, finite=False)[1]


def inner_products(updates: Tensor) -> Tensor:
    """Return `x_i.x_j`, [n, n] float64 on the CPU, computed in float64."""
    return _products(updates, None, torch.float64)


def _gram(updates: Tensor, finite: bool) -> tuple[Tensor, Tensor]:
    dtype = updates.dtype
    products = _products(updates, None, dtype)
    if dtype == torch.float32:
        usual = float(products.diagonal().nan_to_num(torch.inf).median())
        if not _SAFE[0] < usual < _SAFE[1] or (finite and not bool(torch.isfinite(products).all())):
            dtype = torch.float64
            products = _products(updates, None, dtype)
    squared = distances_among(products)
    among = squared.clone().fill_diagonal_(torch.inf).median(1).values
    best = int(among.argmin())
    if float(products.diagonal().median()) > _FAR * float(among[best]):
        products = _products(updates, updates[best], dtype)
        squared = distances_among(products)
    return products, squared


def _products(updates: Tensor, reference: Tensor | None, dtype: torch.dtype) -> Tensor:
    num, length = updates.shape
    total = torch.zeros(num, num, dtype=torch.float64, device=updates.device)
    for first in range(0, length, _BLOCK):
        block = updates[:, first : first + _BLOCK].to(dtype)
        if reference is not None:
            block = block - reference[first : first + _BLOCK].to(dtype)
        for row in range(0, num, _ROWS):
            end = min(num, row + _ROWS)
            total[row:end, :end] += block[row:end] @ block[:end].T
    total = total.cpu()
    return total.tril() + total.tril(-1).T


def distances_among(products: Tensor) -> Tensor:
    """Return the squared distances that inner products tell, as `squared_distances` does."""
    lengths = products.diagonal()
    squared = (lengths[:, None] + lengths[None, :]).sub_(products, alpha=2.0)
    return squared.nan_to_num_(nan=torch.inf, posinf=torch.inf).clamp_(min=0.0).fill_diagonal_(0.0)


def squared_lengths(updates: Tensor, center: Tensor | None = None, own: np.ndarray | None = None) -> np.ndarray:
    """Return `|x_i - center|^2`, [n] float64; without a centre `|x_i|^2`.

    Of many numbers it is `|x_i|^2 - 2 x_i.c + |c|^2`, which copies nothing, except for vectors of which too little is
    left by that. Those whose squares float32 cannot hold are measured in float64.

    Args:
        updates: [n, d].
        center: [d].
        own: `|x_i|^2`, [n], when they are known.
    """
    single = updates.dtype == torch.float32
    if center is None or updates.numel() <= _SMALL:
        squared = _by_difference(updates, center)
        again = _outside(squared) if single else _NONE
    else:
        own = squared_lengths(updates) if own is None else own
        sizes = own + squared_lengths(center[None])
        squared = sizes - 2.0 * _dots(updates, center)
        again = np.flatnonzero(~(squared > _LEFT * sizes))
        if 4 * again.size > squared.size:
            squared = _by_difference(updates, center)
            again = _outside(squared) if single else _NONE
        elif single and (far := _outside(own)).size:
            again = np.union1d(again, far)
    for row in again.tolist():
        squared[row] = _by_difference(updates[row][None].double(), center)[0]
    return squared


_NONE = np.empty(0, dtype=np.int64)


def _outside(squared: np.ndarray) -> np.ndarray:
    """Return the rows whose squares float32 got wrong."""
    if squared.min() > _SAFE[0] and squared.max() < _SAFE[1]:
        return _NONE
    return np.flatnonzero(~((squared > _SAFE[0]) & (squared < _SAFE[1])))


def _by_difference(updates: Tensor, center: Tensor | None) -> np.ndarray:
    if not updates.is_cpu:
        moved = updates if center is None else updates - center
        return np.asarray(torch.linalg.vector_norm(moved, dim=1).double().cpu().numpy() ** 2)
    rows, about = updates.numpy(), None if center is None else center.numpy()
    total = np.zeros(len(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, rows.shape[1], _PART):
            part = rows[:, first : first + _PART]
            if about is not None:
                part = part - about[first : first + _PART]
            total += np.vecdot(part, part)
    return total


def _dots(updates: Tensor, other: Tensor) -> np.ndarray:
    num, length = updates.shape
    total = np.zeros(num)
    for first in range(0, length, _SLICE):
        part = updates[:, first : first + _SLICE] @ other[first : first + _SLICE]
        total += part.cpu().numpy()
    return total


def dots(updates: Tensor, other: Tensor) -> np.ndarray:
    """Return `x_i.other`, [n] float64, computed in float64 where float32 overflows."""
    found = _dots(updates, other.to(updates.dtype))
    for row in np.flatnonzero(~np.isfinite(found)):
        found[row] = _dots(updates[int(row)][None].double(), other.double())[0]
    return found


def measured(updates: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return the rows without NaN and infinity, and their `|x_i|^2` [n]: a row of finite length is finite.

    Raises:
        ValueError: when no row remains, or `updates` is not a matrix of float32 or float64.
    """
    updates = matrix(updates)
    squared = squared_lengths(updates)
    if math.isfinite(squared.sum()):
        return updates, squared
    finite, kept = screen(updates)
    return finite, squared[kept.cpu().numpy()]


def copied(updates: Tensor) -> tuple[Tensor, np.ndarray]:
    """Return what `measured` does, but of a copy; on the CPU the updates are read once for both."""
    num, length = matrix(updates).shape
    if updates.is_cpu:
        copy, squared, whole = empty(num, updates), np.empty(num), length // _PART * _PART
        with np.errstate(over="ignore", invalid="ignore"):
            for row, (source, target) in enumerate(zip(updates.detach().numpy(), copy.numpy(), strict=True)):
                target[:] = source
                parts, rest = target[:whole].reshape(-1, _PART), target[whole:]
                squared[row] = np.vecdot(parts, parts).sum(dtype=np.float64) + np.vecdot(rest, rest)
        if not _outside(squared).size:
            return copy, squared
    rows, squared = measured(updates)
    return rows.clone(), squared


def clipped_to(limit: float, squared: np.ndarray) -> np.ndarray:
    """Return the factors that shorten vectors of these squared lengths to `limit`, at most 1, [n]."""
    lengths = np.sqrt(squared)
    return np.asarray(np.divide(limit, lengths, out=np.ones_like(lengths), where=lengths > limit))


def scaled(updates: Tensor, factors: np.ndarray) -> Tensor:
    """Return `factors_i x_i`, [n, d]."""
    if not updates.is_cpu:
        return updates * torch.from_numpy(factors)[:, None].to(updates)
    rows = updates.numpy()
    return torch.from_numpy(np.multiply(rows, factors.astype(rows.dtype)[:, None], order="C"))


def weighted_sum(updates: Tensor, weights: np.ndarray) -> Tensor:
    """Return `sum_i weights_i x_i`, [d], in one pass over the updates and without a copy of them."""
    total: Tensor = torch.from_numpy(weights).to(updates) @ updates
    return total


def mean_of(updates: Tensor, rows: np.ndarray) -> Tensor:
    """Return the mean of the rows with these indices, [d]."""
    weights = np.zeros(updates.shape[0])
    weights[rows] = 1.0 / len(rows)
    return weighted_sum(updates, weights)


def empty(num: int, like: Tensor) -> Tensor:
    """Return a tensor [num, d] to be filled.

    On the CPU numpy allocates it, as it asks for huge pages: touching a large tensor of torch's for the first time
    takes several times longer than filling it.
    """
    if not like.is_cpu:
        return like.new_empty(num, like.shape[1])
    return torch.from_numpy(np.empty((num, like.shape[1]), np.float32 if like.dtype == torch.float32 else np.float64))
