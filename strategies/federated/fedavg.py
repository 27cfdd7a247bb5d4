"""FedAvg: the server moves to the weighted mean of the models that its clients trained.

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017 (arXiv:1602.05629), Algorithm 1:

    w_{t+1} = sum_k (n_k / n) w^k_{t+1},   n = sum_k n_k over the clients of round t.

It is written here with changes, `w_{t+1} = w_t + eta * sum_k (n_k / n) (w^k_{t+1} - w_t)`, which is the same for
`eta = 1`. Deviations: the server step `eta` (`server_lr`) and any other server optimizer (Reddi et al. 2021,
arXiv:2003.00295, Algorithm 1), and `weighting="uniform"`, which counts every client alike.
"""

from __future__ import annotations

from typing import Literal

from strategies.base import Contribution, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated.server_optimizers import PLAIN, Choice, build, divided


def fedavg(
    num_clients: int,
    server_lr: float = 1.0,
    weighting: Literal["examples", "uniform"] = "examples",
    server_optimizer: Choice = PLAIN,
) -> ServerRule:
    """Return the FedAvg rule.

    Args:
        num_clients: the registered clients; of no concern to this rule.
        server_lr: how far to move towards the mean; 1 is the paper's algorithm.
        weighting: `"examples"` weighs a client by its number of examples, `"uniform"` weighs all alike.
        server_optimizer: how the server steps; plain gradient descent is the paper's algorithm.
    """
    optimizer = build(server_optimizer, server_lr)

    def contribute(update: Update, participation: Participation) -> Contribution:
        return Contribution(update.tree, update.weight if weighting == "examples" else 1.0)

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        return optimizer.step(state, model, divided(model, fold.total, -fold.weight))

    return ServerRule("fedavg", optimizer.init, contribute, step)
