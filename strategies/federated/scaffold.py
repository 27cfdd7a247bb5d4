"""SCAFFOLD: control variates, one a client and their mean at the server, keep local steps from drifting apart.

Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", ICML 2020 (arXiv:1910.06378), Algorithm 1 with option II. With `x` and `c` received, K steps at `eta_l`:

    client   y <- x;   K times   y <- y - eta_l (g_i(y) - c_i + c)
             c_i+ = c_i - c + (x - y) / (K eta_l)
    server   x <- x + eta_g (1/|S|) sum_S (y_i - x)
             c <- c + (1/N) sum_S (c_i+ - c_i)

`c` travels down beside the model. Going up, `Delta y_i = y_i - x` says everything: by option II

    Delta c_i = c_i+ - c_i = -c - Delta y_i / (K eta_l),

so an update costs no more bytes than FedAvg's, where the paper sends both. It is computed from the change as it was
decoded: under lossy compression `c` stays the mean of the `c_i`, and both hold what the server really saw.

Deviations: K may differ between clients, as each `Delta c_i` uses its own; any server optimizer takes the place of
`eta_g`. Clients must step with plain SGD: `Delta y / (K eta_l)` is the mean of their gradients for no other.
"""

from __future__ import annotations

import torch

from strategies.base import Contribution, Correction, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated.server_optimizers import PLAIN, Choice, build, divided, filled, replaced

_CONTROL = "control/"
"""Before a parameter's name: its control variate, as sent (c) and as folded (the sum of Delta c_i)."""


def scaffold(num_clients: int, server_lr: float = 1.0, server_optimizer: Choice = PLAIN) -> ServerRule:
    """Return the SCAFFOLD rule.

    Args:
        num_clients: N, all registered clients, taking part or not.
        server_lr: eta_g.
        server_optimizer: how the server steps; plain gradient descent is the paper's algorithm.
    """
    optimizer = build(server_optimizer, server_lr)

    def init(model: Tree) -> State:
        return {**optimizer.init(model), "control": filled(model, 0.0)}

    def send(state: State) -> Tree:
        return {_CONTROL + name: control for name, control in state["control"].items()}

    def remember(model: Tree) -> Tree:
        return filled(model, 0.0)

    def correct(sent: Tree, memory: Tree) -> Correction:
        differences = torch._foreach_sub([sent[_CONTROL + name] for name in memory], list(memory.values()))
        return Correction(offset=dict(zip(memory, differences, strict=True)))

    def contribute(update: Update, participation: Participation) -> Contribution:
        names, sent, memory = list(update.tree), participation.sent, participation.memory
        per_step = -1.0 / (update.num_steps * participation.client_lr)
        changes = torch._foreach_mul(list(update.tree.values()), per_step)
        torch._foreach_sub_(changes, [sent[_CONTROL + name] for name in names])
        own = torch._foreach_add([memory[name] for name in names], changes)
        controls = {_CONTROL + name: change for name, change in zip(names, changes, strict=True)}
        return Contribution({**update.tree, **controls}, 1.0, replaced(memory, names, own))

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        control = state["control"]
        names = [name for name in control if _CONTROL + name in fold.total]
        changes = [fold.total[_CONTROL + name] for name in names]
        moved = torch._foreach_add([control[name] for name in names], changes, alpha=1.0 / num_clients)
        state = {**state, "control": replaced(control, names, moved)}
        return optimizer.step(state, model, divided(model, fold.total, -fold.weight))

    return ServerRule("scaffold", init, contribute, step, send, correct, remember)
