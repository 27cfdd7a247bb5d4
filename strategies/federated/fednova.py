"""FedNova: changes are divided by the local work behind them before they are averaged.

Source: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020 (arXiv:2007.07481), section 4. A client's change is
`Delta_i = -eta G_i a_i`: its tau_i stochastic gradients, the columns of G_i, weighed by what its optimizer makes of
each. With `d_i = G_i a_i / ||a_i||_1` and `p_i = n_i / n`,

    x <- x - tau_eff sum_i p_i eta d_i  =  x + tau_eff sum_i p_i Delta_i / ||a_i||_1,   tau_eff = sum_i p_i ||a_i||_1,

for which FedAvg is the case of equal `||a_i||_1`. For the optimizers of the paper:

    plain SGD      a = [1, ..., 1]                                  ||a||_1 = tau
    momentum rho   a = [1 - rho^tau, ..., 1 - rho] / (1 - rho)      ||a||_1 = (tau - rho a_1) / (1 - rho)
    proximal mu    a = [(1 - eta mu)^(tau-1), ..., 1 - eta mu, 1]   ||a||_1 = (1 - (1 - eta mu)^tau) / (eta mu)

All are one recurrence: `||a||_1` is how far the optimizer goes, in units of -eta, on gradients that are always 1: the
sum of a, in which nothing is negative while eta mu is small. It covers momentum with a proximal term, too. Deviations:
`p_i` is taken over the round's clients; `tau_eff` is always the mean above, where the authors' code counts plain steps
for a proximal term; any server optimizer may step.
"""

from __future__ import annotations

from typing import Literal

import torch

from strategies.base import Contribution, Correction, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated.server_optimizers import PLAIN, Choice, build, divided

_WORK = "fednova/work"
"""Beside the parameters in a fold: the weighted sum of `||a_i||_1`."""


def fednova(
    num_clients: int,
    mu: float = 0.0,
    server_lr: float = 1.0,
    weighting: Literal["examples", "uniform"] = "examples",
    server_optimizer: Choice = PLAIN,
) -> ServerRule:
    """Return the FedNova rule.

    Args:
        num_clients: the registered clients; of no concern to this rule.
        mu: weight of a proximal term as in FedProx; 0 for none.
        server_lr: 1 is the paper's algorithm. weighting: `p_i` by examples, or alike.
        server_optimizer: how the server steps; plain gradient descent is the paper's algorithm.
    """
    optimizer = build(server_optimizer, server_lr)

    def correct(sent: Tree, memory: Tree) -> Correction:
        return Correction(proximal=mu)

    def contribute(update: Update, participation: Participation) -> Contribution:
        shrink = participation.client_lr * participation.proximal
        work = local_work(update.num_steps, participation.momentum, shrink)
        changes = list(update.tree.values())
        normalised = dict(zip(update.tree, torch._foreach_mul(changes, 1.0 / work), strict=True))
        told = torch.tensor(work, dtype=torch.float64, device=changes[0].device)
        return Contribution({**normalised, _WORK: told}, update.weight if weighting == "examples" else 1.0)

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        effective_steps = float(fold.total[_WORK]) / fold.weight
        return optimizer.step(state, model, divided(model, fold.total, -fold.weight / effective_steps))

    return ServerRule("fednova", optimizer.init, contribute, step, correct=correct)


def local_work(num_steps: int, momentum: float = 0.0, shrink: float = 0.0) -> float:
    """Return `||a||_1` of a client's optimizer.

    Args:
        num_steps: tau, at least 1.
        momentum: rho of torch's SGD, without dampening or Nesterov.
        shrink: `eta * mu`, by how much a step pulls back towards the start; below 1.
    """
    velocity = distance = 0.0
    for _ in range(num_steps):
        velocity = momentum * velocity + 1.0 - shrink * distance
        distance += velocity
    return distance
