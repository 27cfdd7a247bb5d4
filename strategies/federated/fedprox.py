"""FedProx: FedAvg whose clients are pulled back towards the model that they received.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020
(arXiv:1812.06127), equation 2 and Algorithm 2. Client k minimises, inexactly,

    h_k(w; w_t) = F_k(w) + (mu / 2) ||w - w_t||^2,   whose gradient is   grad F_k(w) + mu (w - w_t).

A client may do as much work as it can; whatever it did is aggregated. `mu = 0` is FedAvg.
Deviations: Algorithm 2 draws clients with probability `n_k / n` and weighs them alike (`weighting="uniform"`);
by default they are weighed by their examples, which suits a uniform draw, as in the authors' experiments.
"""

from __future__ import annotations

from typing import Literal

from strategies.base import Correction, ServerRule, Tree
from strategies.federated.fedavg import fedavg
from strategies.federated.server_optimizers import PLAIN, Choice


def fedprox(
    num_clients: int,
    mu: float = 0.01,
    server_lr: float = 1.0,
    weighting: Literal["examples", "uniform"] = "examples",
    server_optimizer: Choice = PLAIN,
) -> ServerRule:
    """Return the FedProx rule; `mu` is the weight of the pull, see `fedavg` for the rest."""

    def correct(sent: Tree, memory: Tree) -> Correction:
        return Correction(proximal=mu)

    return fedavg(num_clients, server_lr, weighting, server_optimizer)._replace(name="fedprox", correct=correct)
