"""Anarchic federated averaging: workers choose when to take part and how many local steps to make.

Source: Yang, Zhang, Khanduri, Liu, "Anarchic Federated Learning", ICML 2022 (arXiv:2108.09875), the algorithms AFA-CD
(cross-device) and AFA-CS (cross-silo). A worker i that made K steps at eta_L from the model of mu pushes its mean
gradient, whose scale does not depend on K:

    G_i = (1/K) sum_k g_k = (x_mu - y_K) / (eta_L K) = -Delta_i / (eta_L K).

When m pushes have arrived, the set M_t, whatever their delays, the server steps:

    AFA-CD   x <- x - eta (1/m) sum_{i in M_t} G_i
    AFA-CS   G[i] <- G_i for i in M_t, the others kept;   x <- x - eta (1/M) sum_{j=1..M} G[j]

AFA-CD leans towards workers that come often, by an error no step size removes; AFA-CS remembers every worker and does
not. Its table `G` is spread over the workers' memories: each contributes `G_new - G_old`, and the server keeps the sum,
in float64, so that no drift builds up. A worker that stops for ever blocks nothing; its last `G[j]` stays in the mean.

Choices: `G[j] = 0` of a worker not heard from, with division by all M or by those heard from (`unheard`); the step is
eta or eta eta_L (`scale`), a re-parameterisation. No staleness is weighed and none refused. Deviations: any client
optimizer makes the change, for which `-Delta / (eta_L K)` is its mean step; any server optimizer may step.
"""

from __future__ import annotations

from typing import Literal

import torch

from strategies.base import Contribution, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated.server_optimizers import PLAIN, Choice, build, divided, filled, replaced

Scale = Literal["server", "server*client"]

_HEARD = "afa/heard"
"""Beside the parameters: 1 in the memory of a worker that has pushed, and the number of those in the sum."""


def afa_cd(
    num_clients: int, server_lr: float = 1.0, scale: Scale = "server", server_optimizer: Choice = PLAIN
) -> ServerRule:
    """Return the AFA-CD rule.

    Args:
        num_clients: the registered workers; of no concern to this rule.
        server_lr: eta. scale: `"server"` puts eta before the mean of the `G_i`, `"server*client"` eta eta_L.
        server_optimizer: how the server steps; plain gradient descent is the paper's algorithm.
    """
    optimizer = build(server_optimizer, server_lr)

    def contribute(update: Update, participation: Participation) -> Contribution:
        return Contribution(_mean_gradient(update, participation, scale), 1.0)

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        return optimizer.step(state, model, divided(model, fold.total, fold.num_clients))

    return ServerRule("afa-cd", optimizer.init, contribute, step)


def afa_cs(
    num_clients: int,
    server_lr: float = 1.0,
    scale: Scale = "server",
    unheard: Literal["zero", "heard"] = "zero",
    server_optimizer: Choice = PLAIN,
) -> ServerRule:
    """Return the AFA-CS rule.

    Args:
        num_clients: M, all registered workers.
        unheard: `"zero"` divides by M, so that the first steps are short; `"heard"` by the workers heard from.
        server_lr, scale, server_optimizer: as for `afa_cd`.
    """
    optimizer = build(server_optimizer, server_lr)

    def with_count(tree: Tree, heard: float) -> Tree:
        return {**tree, _HEARD: torch.full((), heard, dtype=torch.float64, device=next(iter(tree.values())).device)}

    def init(model: Tree) -> State:
        total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in model.items()}
        return {**optimizer.init(model), "sum": with_count(total, 0.0)}

    def remember(model: Tree) -> Tree:
        return with_count(filled(model, 0.0), 0.0)

    def contribute(update: Update, participation: Participation) -> Contribution:
        new, old = with_count(_mean_gradient(update, participation, scale), 1.0), participation.memory
        change = torch._foreach_sub([new[name].double() for name in new], [old[name].double() for name in new])
        return Contribution(dict(zip(new, change, strict=True)), 1.0, {**old, **new})

    def step(state: State, model: Tree, fold: Fold) -> tuple[State, Tree]:
        before = state["sum"]
        moved = torch._foreach_add([before[name] for name in fold.total], list(fold.total.values()))
        sums = dict(zip(fold.total, moved, strict=True))
        divisor = num_clients if unheard == "zero" else float(sums[_HEARD])
        state = {**state, "sum": replaced(before, sums, moved)}
        return optimizer.step(state, model, divided(model, sums, divisor))

    return ServerRule("afa-cs", init, contribute, step, remember=remember)


def _mean_gradient(update: Update, participation: Participation, scale: Scale) -> Tree:
    per_step = -1.0 / (update.num_steps * (participation.client_lr if scale == "server" else 1.0))
    return dict(zip(update.tree, torch._foreach_mul(list(update.tree.values()), per_step), strict=True))
