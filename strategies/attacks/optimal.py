"""Optimal ALIE and optimal IPM: the same attacks, with the factor that does this very defence most harm.

Source: ByzFL 0.0.11, Optimal_ALittleIsEnough and Optimal_InnerProductManipulation; Allouah, Farhadkhani, Guerraoui,
Gupta, Pinot, Stephan, "Fixing by Mixing", AISTATS 2023 (the attacks of their experiments). Harm of a factor is the
distance of the aggregate of honest and attacking vectors from the mean of the honest ones; where the defence returns
NaN, a factor is no improvement.
Knowledge: all honest vectors and the defence, with its pre-aggregation and its state.
Deviation: the defence is one function; ByzFL's arguments for a list of pre-aggregators and their f go with it. Where
the defence knows a quicker way to a factor's harm (`Knowledge.moved_by`), that is taken. It rounds otherwise, so among
factors that do the same harm, as all large ones do where vectors are clipped, it may find another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.attacks.base import MovedBy, check, copies, origin
from strategies.attacks.moments import spread

Aggregate = Callable[[Tensor], Tensor]


class LineSearch(NamedTuple):
    """Where to look for a factor; see `search`. The step is not 0, and below 0 looks the other way."""

    num_evaluations: int = 20
    start: float = 0.0
    step: float = 10.0
    ratio: float = 0.8


def optimal_little_is_enough(
    honest: Tensor,
    num_byzantine: int,
    num_evaluations: int = 20,
    start: float = 0.0,
    step: float = 10.0,
    ratio: float = 0.8,
    *,
    aggregate: Aggregate | None = None,
    moved_by: MovedBy | None = None,
) -> Tensor:
    """Return `mean + z * standard deviation` with the most harmful z that `search` finds.

    Raises:
        ValueError: without `aggregate`, for arguments that `search` refuses, and what the defence raises.
    """
    check(honest, num_byzantine)
    line = LineSearch(num_evaluations, start, step, ratio)
    return _most_harmful(honest, num_byzantine, honest.mean(0), spread(honest), aggregate, moved_by, line)


def optimal_inner_product_manipulation(
    honest: Tensor,
    num_byzantine: int,
    num_evaluations: int = 20,
    start: float = 0.0,
    step: float = 10.0,
    ratio: float = 0.8,
    *,
    aggregate: Aggregate | None = None,
    moved_by: MovedBy | None = None,
    received: Tensor | None = None,
) -> Tensor:
    """Return `received - tau * (mean - received)` with the most harmful tau that `search` finds; raises as above."""
    check(honest, num_byzantine)
    base = origin(honest, received)
    line = LineSearch(num_evaluations, start, step, ratio)
    return _most_harmful(honest, num_byzantine, base, base - honest.mean(0), aggregate, moved_by, line)


def search(harm: Callable[[float], float], line: LineSearch) -> float:
    """Return the factor of most harm among those tried: away from the start in doubling steps, then in shrinking ones.

    While a step does more harm it is taken and doubled. The first that does not ends this; from then on every step
    tried is `ratio` times the one before, always outwards from the best factor so far.
    """
    best, most = line.start, harm(line.start)
    step, growing = line.step, True
    for _ in range(line.num_evaluations - 1):
        tried = best + step
        value = harm(tried)
        better = value > most
        if better:
            best, most = tried, value
        growing = growing and better
        step *= 2.0 if growing else line.ratio
    return best


def _most_harmful(
    honest: Tensor,
    num_byzantine: int,
    base: Tensor,
    along: Tensor,
    aggregate: Aggregate | None,
    moved_by: MovedBy | None,
    line: LineSearch,
) -> Tensor:
    if line.num_evaluations < 1 or not (line.step > 0 or line.step < 0) or not 0.5 < line.ratio < 1:
        raise ValueError(
            f"num_evaluations={line.num_evaluations}, step={line.step}, ratio={line.ratio}: at least 1 evaluation, a "
            "step that is not 0, and a ratio between 0.5 and 1, both excluded"
        )
    if num_byzantine == 0:
        return honest.new_empty(0, honest.shape[1])
    if aggregate is None:
        raise ValueError("an optimal attack needs the defence that it is optimal against: give Knowledge.aggregate")
    defence, mean = aggregate, honest.mean(0)
    together = torch.cat([honest, copies(base, num_byzantine)])

    quick = moved_by(honest, base, along, num_byzantine) if moved_by is not None else None

    def harm(factor: float) -> float:
        found = quick(factor) if quick is not None else None
        if found is not None:
            return found
        together[honest.shape[0] :] = base + factor * along
        return float(torch.linalg.vector_norm(defence(together) - mean))

    return copies(base + search(harm, line) * along, num_byzantine)
