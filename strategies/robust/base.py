"""What robust rules share: the context they may know, how they are described, their bounds, and who is let in.

A rule takes the vectors of n senders as the rows of `updates [n, d]`, float32 or float64, of which up to
`num_byzantine` (f) may be anything at all, and gives one vector `[d]` of the same dtype and device (a pre-aggregator:
`[m, d]`). No rule writes into what it was given. Rows that hold NaN or infinity are somebody's fault for certain, so
robust rules drop them and lower f by as many, though not below 0: `admit`. `mean` alone takes them as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


class Context(NamedTuple):
    """What a rule may know beside the updates.

    Args:
        num_byzantine: f, how many of the vectors may be anything.
        weights: [n], how much each asks to count; the mean follows them, robust rules do not.
        center: [d], the previous aggregate, of stateful rules; None for zeros.
        own: [d], the vector of the peer that aggregates, where there is no server.
        root: [d], an update that is trusted.
        seed: what the choices of rules that draw follow.
    """

    num_byzantine: int
    weights: Tensor | None = None
    center: Tensor | None = None
    own: Tensor | None = None
    root: Tensor | None = None
    seed: int = 0


Check = Callable[[int, int], None]
"""`(n, f)`, raising ValueError when n vectors are too few for f Byzantine ones."""


Weights = Callable[[Tensor, Context], Tensor]
"""`(inner products [n, n], context) -> [n]` of an aggregator, `[m, n]` of a pre-aggregator; all float64 on the CPU."""

Kept = Callable[[int, int], tuple[int, int]]
"""`(n, f) -> (low, high)`: of each coordinate's n numbers, ascending, those that are averaged are `low:high`."""


class Aggregator(NamedTuple):
    """A rule as the registry knows it.

    Args:
        name: as in experiment files.
        apply: `(updates [n, d], context) -> [d]`.
        check: `(n, f)`, raising ValueError that names both and the bound.
        stateful: whether it wants its previous result as `context.center`.
        needs_root, needs_own: whether `context.root` must be there; whether `context.own` should.
        weights: the rule as weights of its rows, where inner products alone tell them; see `line`.
        kept: the rule as the mean of some order statistics of each coordinate; see `line`.
    """

    name: str
    apply: Callable[[Tensor, Context], Tensor]
    check: Check
    stateful: bool = False
    needs_root: bool = False
    needs_own: bool = False
    weights: Weights | None = None
    kept: Kept | None = None


def same_number(num_vectors: int) -> int:
    """Return the number given: most pre-aggregators leave as many rows as there were."""
    return num_vectors


class PreAggregator(NamedTuple):
    """A rule that changes the vectors before an aggregator sees them.

    Args:
        name: as in experiment files.
        apply: `(updates [n, d], context) -> [m, d]`.
        check: as an aggregator's.
        num_after: n -> m. Up to f rows of the result may be anything, as before.
        weights: the rule as a matrix that its rows are multiplied by, where inner products alone tell it; see `line`.
    """

    name: str
    apply: Callable[[Tensor, Context], Tensor]
    check: Check
    num_after: Callable[[int], int] = same_number
    weights: Weights | None = None


@dataclass(frozen=True)
class Bound:
    """A rule's check: at least `factor * f + extra` vectors for f Byzantine ones."""

    rule: str
    factor: int
    extra: int

    def __call__(self, num_vectors: int, num_byzantine: int) -> None:
        """Raise ValueError when there are too few."""
        if num_byzantine < 0:
            raise ValueError(f"{self.rule}: num_byzantine={num_byzantine}, expected 0 or more")
        needed = max(1, self.factor * num_byzantine + self.extra)
        if num_vectors < needed:
            formula = " + ".join(
                [f"{self.factor}f" if self.factor > 1 else "f"] * (self.factor > 0) + [str(self.extra)]
            )
            most = (num_vectors - self.extra) // self.factor if self.factor else -1
            way_out = f" or num_byzantine={most} at most" if most >= 0 else ""
            raise ValueError(
                f"{self.rule}: n={num_vectors} vectors are too few for f={num_byzantine} Byzantine ones; it needs "
                f"n >= {formula} = {needed}: give {needed} vectors or more{way_out}"
            )


def majority(rule: str) -> Bound:
    """Return the bound of most rules: n > 2f."""
    return Bound(rule, 2, 1)


class Screened(NamedTuple):
    """The rows without NaN and infinity, and which they are [n]."""

    updates: Tensor
    kept: Tensor


def screen(updates: Tensor) -> Screened:
    """Drop the rows that hold NaN or infinity; when there are none, `updates` is the very tensor given.

    Raises:
        ValueError: when no row remains, or `updates` is not a matrix of float32 or float64.
    """
    updates = matrix(updates)
    kept = finite_rows(updates)
    if bool(kept.all()):
        return Screened(updates, kept)
    if not bool(kept.any()):
        raise ValueError(f"all {len(updates)} vectors hold NaN or infinity, so there is nothing to aggregate")
    return Screened(updates[kept], kept)


def finite_rows(updates: Tensor) -> Tensor:
    """Return which rows of `[n, d]` hold neither NaN nor infinity, `[n]`; a sum each is quicker than looking at all."""
    if math.isfinite(float(updates.sum())):
        return torch.ones(updates.shape[0], dtype=torch.bool, device=updates.device)
    kept = torch.isfinite(updates.sum(1))
    for row in torch.nonzero(~kept).flatten().tolist():  # a sum of large numbers may overflow
        kept[row] = torch.isfinite(updates[row]).all()
    return kept


class Admitted(NamedTuple):
    """The rows a robust rule works on, and how many of them may still be Byzantine."""

    updates: Tensor
    num_byzantine: int


def admit(updates: Tensor, num_byzantine: int, check: Check) -> Admitted:
    """Check the numbers, drop the rows that hold NaN or infinity, and lower f by as many, though not below 0.

    Raises:
        ValueError: when there are too few vectors, before dropping or after.
    """
    num = matrix(updates).shape[0]
    check(num, num_byzantine)
    finite = screen(updates).updates
    return Admitted(finite, lowered(num_byzantine, num, finite.shape[0], check))


def lowered(num_byzantine: int, num_before: int, num_left: int, check: Check) -> int:
    """Return f less the vectors dropped, at least 0; ValueError when those left are too few for it."""
    if num_left < num_before:
        num_byzantine = max(0, num_byzantine - (num_before - num_left))
        check(num_left, num_byzantine)
    return num_byzantine


def matrix(updates: Tensor) -> Tensor:
    """Return the updates without their gradients; ValueError when they are no `[n, d]` of float32 or float64."""
    if updates.dim() != 2 or updates.dtype not in DTYPES or not updates.shape[0]:
        raise ValueError(
            f"updates are {updates.dtype} {list(updates.shape)}; expected float32 or float64 [n, d], a vector a row"
        )
    return updates.detach()


def vector(given: Tensor, updates: Tensor, name: str) -> Tensor:
    """Return a vector that came beside the updates, in their dtype and on their device.

    Raises:
        ValueError: when its shape is not [d], or it holds NaN or infinity.
    """
    if given.shape != updates.shape[1:]:
        raise ValueError(f"{name} is {list(given.shape)}; expected {list(updates.shape[1:])}, as long as an update")
    given = given.detach().to(updates)
    if not math.isfinite(float(given.sum())) and not bool(torch.isfinite(given).all()):
        raise ValueError(f"{name} holds NaN or infinity; it must come from a source that is trusted")
    return given


def positive(rule: str, **arguments: float) -> None:
    """Raise ValueError for an argument that is not a finite number above 0."""
    for name, value in arguments.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{rule}: {name}={value}, expected a finite number above 0")


def one_of(rule: str, name: str, given: str, expected: tuple[str, ...]) -> None:
    """Raise ValueError for a switch that is set to no known value."""
    if given not in expected:
        raise ValueError(f"{rule}: {name}={given!r}, expected {' or '.join(map(repr, expected))}")
