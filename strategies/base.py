"""The vocabulary that every strategy shares: trees of tensors, updates, folds and server rules.

A *tree* is a flat mapping from parameter name to tensor, in the order of the model. An *update* is what one
client hands back. A *fold* is a weighted sum of updates: it can be built on many workers and added up, so a
server never holds one tree per client. A *server rule* is a small bundle of pure functions over these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
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


class Correction(NamedTuple):
    """What a rule adds to the gradient of a client's local steps: `g = grad F(y) + offset + proximal * (y - x)`.

    Here `y` is the client's model and `x` the one it received. Both loops over clients, one by one and batched,
    apply it, so a rule that can say its local change in this form runs on either.

    Args:
        offset: a tree of constants (SCAFFOLD's `c - c_i`); None for none. Names it lacks are left alone.
        proximal: the weight of the pull towards `x` (FedProx's mu).
    """

    offset: Tree | None = None
    proximal: float = 0.0


class Participation(NamedTuple):
    """The circumstances of an update, which some rules weigh it by.

    Args:
        staleness: server steps made between the version it was trained from and now; 0 when synchronous.
        client_lr, momentum: of the client's optimizer; momentum 0 when it has none.
        proximal: the weight of the proximal term it trained with.
        sent: what the rule had sent beside the model. memory: what is remembered of the client.
    """

    staleness: int = 0
    client_lr: float = 1.0
    momentum: float = 0.0
    proximal: float = 0.0
    sent: Tree = MappingProxyType({})
    memory: Tree = MappingProxyType({})


class Contribution(NamedTuple):
    """One update as a rule wants it folded: `fold.total += weight * tree`, `fold.weight += weight`.

    Args:
        tree: anything that is to be summed; names beyond the model's and 0-d tensors are welcome.
        memory: what is to be remembered of the client from now on; None leaves it as it was.
    """

    tree: Tree
    weight: float
    memory: Tree | None = None


def _nothing(_: object) -> Tree:
    return {}


def _no_correction(sent: Tree, memory: Tree) -> Correction:
    return Correction()


class ServerRule(NamedTuple):
    """A federated algorithm, as pure functions that the rounds engine composes.

    Args:
        name: the name written in experiment files.
        init: `model -> state`, once before the first round.
        contribute: `(update, participation) -> contribution`, run by the worker beside the client, before folding.
        step: `(state, model, fold) -> (state, model)`, run by the server when enough has arrived.
        send: `state -> tree` that clients receive beside the model, under names of its own.
        correct: `(sent, memory) -> correction` of the gradient of the client's local steps.
        remember: `model -> memory` of a client that has not taken part yet.

    Source: the split into pure functions follows fedjax and optax; each rule's file names its paper.
    """

    name: str
    init: Callable[[Tree], State]
    contribute: Callable[[Update, Participation], Contribution]
    step: Callable[[State, Tree, Fold], tuple[State, Tree]]
    send: Callable[[State], Tree] = _nothing
    correct: Callable[[Tree, Tree], Correction] = _no_correction
    remember: Callable[[Tree], Tree] = _nothing
