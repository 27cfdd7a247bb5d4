"""FedDyn: every client's objective is bent so that its minimum is where the population's is.

Source: Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization",
ICLR 2021 (arXiv:2111.04263), Algorithm 1. With `x` received, `h_i` what client i remembers, P the round's clients of m:

    client   y_i = argmin L_i(y) - <h_i, y> + (alpha / 2) ||y - x||^2,   h_i <- h_i - alpha (y_i - x)
    server   h <- h - (alpha / m) sum_{i in P} (y_i - x),                x <- (1/|P|) sum_{i in P} y_i - h / alpha

The client's gradient is `grad L_i(y) - h_i + alpha (y - x)`. Only `y_i - x` travels; `h_i` is kept from the change as
it was decoded. Deviations: the minimum is approached by the client's local steps, as in the paper's experiments; any
server optimizer may step on the whole move of `x`.
"""

from __future__ import annotations

import torch

from strategies.base import Contribution, Correction, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated.server_optimizers import PLAIN, Choice, build, divided, filled, replaced


def feddyn(
    num_clients: int, alpha: float = 0.01, server_lr: float = 1.0, server_optimizer: Choice = PLAIN
) -> ServerRule:
    """Return the FedDyn rule.

    Args:
        num_clients: m, all registered clients.
        alpha: weight of the regulariser.
        server_lr: how much of the move is made; 1 is the paper's algorithm.
        server_optimizer: how the server steps; plain gradient descent is the paper's algorithm.
    """
    optimizer = build(server_optimizer, server_lr)

    def init(model: Tree) -> State:
        return {**optimizer.init(model), "bend": filled(model, 0.0)}

    def remember(model: Tree) -> Tree:
        return filled(model, 0.0)

    def correct(sent: Tree, memory: Tree) -> Correction:
        offsets = torch._foreach_neg(list(memory.values()))
        return Correction(dict(zip(memory, offsets, strict=True)), proximal=alpha)

    def contribute(update: Update, participation: Participation) -> Contribution:
        memory, changes = participation.memory, list(update.tree.values())
        own = torch._foreach_add([memory[name] for name in update.tree], changes, alpha=-alpha)
        return Contribution(update.tree, 1.0, replaced(memory, update.tree, own))

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        bend, gradient = state["bend"], divided(model, fold.total, -fold.weight)
        moved = torch._foreach_add(
            [bend[name] for name in gradient], list(gradient.values()), alpha=alpha * fold.weight / num_clients
        )
        whole = torch._foreach_add(list(gradient.values()), moved, alpha=1.0 / alpha)
        state = {**state, "bend": replaced(bend, gradient, moved)}
        return optimizer.step(state, model, dict(zip(gradient, whole, strict=True)))

    return ServerRule("feddyn", init, contribute, step, correct=correct, remember=remember)
