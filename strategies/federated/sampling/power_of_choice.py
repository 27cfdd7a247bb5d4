"""Power of choice: of a few clients drawn by size, those on whose data the model is worst.

Source: Cho, Wang and Joshi 2020, "Client selection in federated learning: convergence analysis and power-of-choice
selection strategies", arXiv:2010.01243, section 4: draw `d` candidates without replacement in proportion to their
examples, and take the `m` of them with the largest losses. Two of its variants:

- remembered losses: *rpow-d*, section 4.1. A client counts with the mean loss it reported when it took part last, and
  with infinity before; nothing is sent beyond a round's own messages.
- fresh losses: *pow-d*, when the engine measures the present model on the candidates' whole data and `learn`s that
  before it draws; on one batch of each it is *cpow-d*. The virtual clock does not charge for this measurement.

Ties are broken at random, as in the paper; candidates are at least as many as the cohort.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from strategies.base import Tree
from strategies.federated.sampling import table
from strategies.federated.sampling.base import Candidates, Feedback, Sampler
from strategies.federated.sampling.weighted import by_size


def power_of_choice_sampler(*, candidates: int, fresh_losses: bool = False) -> Sampler:
    """Return power of choice.

    Args:
        candidates: `d`. fresh_losses: pow-d in place of rpow-d; sets `Sampler.needs_losses`.
    """
    at_least = candidates

    def shortlist(
        memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator
    ) -> tuple[int, ...]:
        return tuple(sorted(by_size(candidates, max(at_least, count), rng)))

    def draw(memory: Tree, candidates: Candidates, count: int, step: int, rng: np.random.Generator) -> tuple[int, ...]:
        clients = np.asarray(shortlist(memory, candidates, count, step, rng), np.int64)
        rows, found = table.place(memory, clients)
        losses = np.full(len(clients), np.inf)
        losses[found] = table.column(memory, "loss")[rows[found]]
        worst = np.lexsort((rng.random(len(clients)), -losses))[:count]
        return tuple(sorted(clients[worst].tolist()))

    def learn(memory: Tree, feedback: Sequence[Feedback], step: int) -> Tree:
        losses = {one.client: one.loss for one in feedback if not np.isnan(one.loss)}
        if not losses:
            return memory
        return table.write(memory, np.fromiter(losses, np.int64), loss=np.fromiter(losses.values(), np.float64))

    return Sampler(
        "power-of-choice", draw, lambda: table.empty(loss=torch.float64), learn, shortlist, needs_losses=fresh_losses
    )
