"""The vocabulary that every strategy shares: trees of tensors, updates, folds and server rules.

A *tree* is a flat mapping from parameter name to tensor, in the order of the model. An *update* is what one
client hands back. A *fold* is a weighted sum of updates: it can be built on many workers and added up, so a
server never holds one tree per client. A *server rule* is a small bundle of pure functions over these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

Tree = Mapping[str, Tensor]
"""Parameter name -> tensor. Iteration order is the model's order and is part of the value."""

State = Mapping[str, Tree]
"""What a server rule remembers between rounds: named trees, so that a checkpoint can hold any rule's state."""


class Update(NamedTuple):
    """What one client returns from one participation.

    Args:
        client: the client's name.
        tree: its change of the model, `w_local - w_received`.
        weight: how much it asks to count, normally its number of examples.
        num_steps: local optimizer steps behind the change.
        metrics: figures about the participation (`loss`, `accuracy`, ...).
    """

    client: str
    tree: Tree
    weight: float
    num_steps: int
    metrics: Mapping[str, float]


class Fold(NamedTuple):
    """A weighted sum of contributions, `total = sum_i weight_i * tree_i`.

    Folds of disjoint groups of clients add up to the fold of their union; `strategies.federated.folding`
    fixes the order of the additions, so that the bits do not depend on who did them.
    """

    total: Tree
    weight: float
    num_clients: int


class Contribution(NamedTuple):
    """One update as a rule wants it folded: `fold.total += weight * tree`, `fold.weight += weight`."""

    tree: Tree
    weight: float


class ServerRule(NamedTuple):
    """A federated algorithm's server side, as pure functions that the rounds engine composes.

    Args:
        name: the name written in experiment files.
        init: `model -> state`, once before the first round.
        contribute: `update -> contribution`, run by the worker beside the client, before folding.
        step: `(state, model, fold) -> (state, model)`, run by the server when enough has arrived.

    Source: the split into pure functions follows fedjax and optax; each rule's file names its paper.
    """

    name: str
    init: Callable[[Tree], State]
    contribute: Callable[[Update], Contribution]
    step: Callable[[State, Tree, Fold], tuple[State, Tree]]
