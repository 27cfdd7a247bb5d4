"""What a sampler is, and drawing without replacement among clients that may be busy or away.

A sampler is a bundle of pure functions: a cohort is a function of the seed, the step and what the sampler remembers,
and its memory is a value that checkpoints hold. Memories are sparse: they grow with the clients seen.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence, Set
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies.base import Tree

Ids = NDArray[np.int64]

_TRIES = 32


class Candidates(NamedTuple):
    """Whom a sampler may choose from.

    Args:
        num_clients: ids are 0 to `num_clients - 1`.
        sizes: `ids -> numbers of examples`. The same function in every step lets samplers reuse what they derive.
        available: `client -> whether` it can start now; None: all can.
        busy: clients that are taking part already.
    """

    num_clients: int
    sizes: Callable[[Ids], NDArray[np.int64]]
    available: Callable[[int], bool] | None = None
    busy: Set[int] = frozenset()

    def has(self, client: int) -> bool:
        """Return whether a client can start now."""
        return client not in self.busy and (self.available is None or self.available(client))


class Feedback(NamedTuple):
    """What one participation taught: the client's mean training loss, its examples, and its virtual duration."""

    client: int
    loss: float
    num_examples: int
    duration_s: float


Draw = Callable[[Tree, Candidates, int, int, np.random.Generator], tuple[int, ...]]
"""`(memory, candidates, count, step, rng) -> clients`: different ones, ascending, fewer than `count` if need be."""


def nothing() -> Tree:
    """Remember nothing."""
    return {}


def learns_nothing(memory: Tree, feedback: Sequence[Feedback], step: int) -> Tree:
    """Leave the memory as it is."""
    return memory


class Sampler(NamedTuple):
    """A way of choosing who takes part.

    Args:
        name: the name written in experiment files.
        draw: see `Draw`; `step` counts from 0.
        init: the memory before the first step. learn: `(memory, feedback of a step, step) -> memory`.
        shortlist: like `draw`: the clients among which `draw` will choose by their losses when it is given an equal
            generator. With it, the engine may measure the model's loss on them, `learn` it, and draw after that.
        needs_losses: whether the engine must do so, in every step.
        among: the only clients it ever draws; None: all.
    """

    name: str
    draw: Draw
    init: Callable[[], Tree] = nothing
    learn: Callable[[Tree, Sequence[Feedback], int], Tree] = learns_nothing
    shortlist: Draw | None = None
    needs_losses: bool = False
    among: tuple[int, ...] | None = None


def successive(
    propose: Callable[[int], Ids],
    weights: Callable[[Ids], NDArray[np.float64]],
    candidates: Candidates,
    count: int,
    rng: np.random.Generator,
    excluded: Container[int] = frozenset(),
) -> list[int]:
    """Draw up to `count` different clients one after another, each with a chance proportional to its weight.

    Proposals that were drawn before, are excluded, busy or away are rejected, which leaves the others' proportions as
    they are. After a bounded number of proposals the rest comes from one pass over all clients, in the same
    proportions; so the cost is that of the cohort unless few clients are left to choose from.

    Args:
        propose: `n -> ids`, drawn with replacement in proportion to the weights. weights: `ids -> weights`.
    """
    chosen: dict[int, None] = {}
    tries = _TRIES * count + 1024
    while len(chosen) < count and tries > 0:
        batch = propose(min(tries, 2 * (count - len(chosen)) + 8))
        tries -= len(batch)
        for client in batch.tolist():
            if client not in chosen and client not in excluded and candidates.has(client):
                chosen[client] = None
                if len(chosen) == count:
                    break
    if len(chosen) < count:
        left = [
            client
            for client in range(candidates.num_clients)
            if client not in chosen and client not in excluded and candidates.has(client)
        ]
        ids = np.asarray(left, np.int64)
        chosen |= dict.fromkeys(ids[heaviest(weights(ids), count - len(chosen), rng)].tolist())
    return list(chosen)


def heaviest(weights: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return up to `count` places drawn one after another in proportion to their weights; weights of 0 never.

    Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir", algorithm A: the smallest
    of exponential keys divided by weights.
    """
    possible = np.flatnonzero(weights > 0)
    keys = rng.standard_exponential(len(possible)) / weights[possible]
    return possible[np.argsort(keys, kind="stable")[:count]]
