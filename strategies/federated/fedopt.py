"""FedAvgM, FedAdagrad, FedYogi and FedAdam: FedAvg whose server steps with an optimizer that remembers.

The mean change of a round, negated, stands for a gradient; see `server_optimizers` for the formulas.

Source: FedAvgM is Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification", 2019 (arXiv:1909.06335): `v <- beta v + Delta w; w <- w - v`. The others are Reddi et al.,
"Adaptive Federated Optimization", ICLR 2021 (arXiv:2003.00295), Algorithm 2. Deviations: FedAvgM has a server step
(`server_lr`; 1 is the paper's) and momentum may be Nesterov's; means may be weighted by examples, as in FedAvg,
where Algorithm 2 weighs all clients alike (`weighting="uniform"`).
"""

from __future__ import annotations

from typing import Literal

from strategies.base import ServerRule
from strategies.federated.fedavg import fedavg

Weighting = Literal["examples", "uniform"]


def fedavgm(
    num_clients: int,
    server_lr: float = 1.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    weighting: Weighting = "examples",
) -> ServerRule:
    """Return FedAvg with server momentum."""
    optimizer = {"name": "sgd", "momentum": momentum, "nesterov": nesterov}
    return fedavg(num_clients, server_lr, weighting, optimizer)._replace(name="fedavgm")


def fedadam(
    num_clients: int,
    server_lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    weighting: Weighting = "examples",
) -> ServerRule:
    """Return FedAvg with Adam at the server. `tau` is the degree of adaptivity: large values tend to FedAvgM."""
    optimizer = {"name": "adam", "beta1": beta1, "beta2": beta2, "tau": tau}
    return fedavg(num_clients, server_lr, weighting, optimizer)._replace(name="fedadam")


def fedyogi(
    num_clients: int,
    server_lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    weighting: Weighting = "examples",
) -> ServerRule:
    """Return FedAvg with Yogi at the server."""
    optimizer = {"name": "yogi", "beta1": beta1, "beta2": beta2, "tau": tau}
    return fedavg(num_clients, server_lr, weighting, optimizer)._replace(name="fedyogi")


def fedadagrad(
    num_clients: int,
    server_lr: float = 0.1,
    beta1: float = 0.0,
    tau: float = 1e-3,
    weighting: Weighting = "examples",
) -> ServerRule:
    """Return FedAvg with Adagrad at the server."""
    optimizer = {"name": "adagrad", "beta1": beta1, "tau": tau}
    return fedavg(num_clients, server_lr, weighting, optimizer)._replace(name="fedadagrad")
