"""FedBuff: the server steps as soon as a buffer is full, and stale updates count less.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022 (arXiv:2106.06639), Algorithm 1. Of a buffer of K updates, each trained from a model that
the server has stepped on from tau_i times since,

    w <- w + eta_g (1/K) sum_i s(tau_i) Delta_i,   s(tau) = 1 / sqrt(1 + tau) .

The sum is divided by the number of updates, not of weights: a stale buffer makes a shorter step. When the buffer is
full is the pacing's to say. Deviations: the exponent of `s` may be chosen; any server optimizer may step.
"""

from __future__ import annotations

from strategies.base import Contribution, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated.server_optimizers import PLAIN, Choice, build, divided


def fedbuff(
    num_clients: int, server_lr: float = 1.0, staleness_exponent: float = 0.5, server_optimizer: Choice = PLAIN
) -> ServerRule:
    """Return the FedBuff rule.

    Args:
        num_clients: the registered clients; of no concern to this rule.
        server_lr: eta_g.
        staleness_exponent: a of `s(tau) = (1 + tau)^-a`; 0 counts all updates alike.
        server_optimizer: how the server steps; plain gradient descent is the paper's algorithm.
    """
    optimizer = build(server_optimizer, server_lr)

    def contribute(update: Update, participation: Participation) -> Contribution:
        return Contribution(update.tree, (1.0 + participation.staleness) ** -staleness_exponent)

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        return optimizer.step(state, model, divided(model, fold.total, -float(fold.num_clients)))

    return ServerRule("fedbuff", optimizer.init, contribute, step)
