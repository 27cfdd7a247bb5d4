"""The shapes of attacks: what an attacker may know, vectors it sends instead of honest ones, data it trains on instead.

A *vector attack* is a pure function of honest vectors and of `Knowledge`. Which vectors those are is the threat model,
and whoever calls chooses it: all honest vectors when attackers are omniscient, or the vectors that the attackers
themselves computed honestly when they know only their own data. Every attack says what it makes of each. Rows are
changes (`received=None`) or whole models (`received`: where training started); `received` is the origin that directions
are seen from, so attacking models equals attacking changes and adding them to it, unless an attack says otherwise.

A *poisoning* replaces the examples of a client that otherwise trains as told.

Left out: who is an attacker and when, which the engines decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.base import Tree
from strategies.seeds import generator

Examples = tuple[NDArray[Any], NDArray[Any]]
"""Inputs [n, ...] and labels int64 [n]."""


MovedBy = Callable[[Tensor, Tensor, Tensor, int], Callable[[float], float | None] | None]


class Knowledge(NamedTuple):
    """What attackers know beside the vectors.

    Args:
        num_byzantine: f, the vectors to make.
        aggregate: the defence, [h + f, d] -> [d], with the attackers last; raises what the defence raises.
        received: [d], the model that training started from, in the rows' own terms; None: the origin.
        seed: of attacks that draw; one per round, so that rounds differ.
        previous: [d], the last aggregate as a change, for free riders; None: no round has ended yet.
        num_total: n, all who send, attackers included; None: h + f, which is right for the omniscient.
        memory: what `Attack.watch` remembered of earlier rounds.
        moved_by: `(honest, base, along, f) -> (t -> how far copies of base + t along move the defence's result from the
            honest mean)`: a quicker way to know it, where the defence has one; what gives None is to be asked of
            `aggregate`.
    """

    num_byzantine: int
    aggregate: Callable[[Tensor], Tensor] | None = None
    received: Tensor | None = None
    seed: int = 0
    previous: Tensor | None = None
    num_total: int | None = None
    memory: Tree = MappingProxyType({})
    moved_by: MovedBy | None = None


def _nothing(memory: Tree, honest: Tensor, knowledge: Knowledge) -> Tree:
    return memory


class Attack(NamedTuple):
    """An attack on vectors, with its arguments set.

    Args:
        name: as written in experiment files.
        apply: `(honest [h, d], knowledge) -> [num_byzantine, d]`, same dtype and device, nothing written to.
        needs_aggregate: whether `Knowledge.aggregate` must be given.
        watch: `(memory, honest, knowledge) -> memory`, called once a round before `apply` by whoever wants attackers
            that remember; most have nothing to remember, and all work without it.
    """

    name: str
    apply: Callable[[Tensor, Knowledge], Tensor]
    needs_aggregate: bool = False
    watch: Callable[[Tree, Tensor, Knowledge], Tree] = _nothing


class Poisoning(NamedTuple):
    """An attack on a client's examples, with its arguments set.

    Args:
        name: as written in experiment files.
        apply: `(x, y, num_classes, rng) -> (x, y)`, new arrays of the same shapes and dtypes.
        probe: `(x, y) -> (x, y)`: of test examples, those that measure success, altered as the attacker would, with the
            labels that it wants; the accuracy on them is the success rate. None: success is lost accuracy.
    """

    name: str
    apply: Callable[[NDArray[Any], NDArray[Any], int, np.random.Generator], Examples]
    probe: Callable[[NDArray[Any], NDArray[Any]], Examples] | None = None


def check(honest: Tensor, num_byzantine: int) -> None:
    """Refuse what no attack can work on.

    Raises:
        ValueError: unless there is at least one vector, as a row of a float32 or float64 matrix, and f is at least 0.
    """
    if honest.ndim != 2 or honest.shape[0] == 0 or honest.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "an attack needs at least one vector: a float32 or float64 matrix [h, d] with h >= 1, "
            f"got {honest.dtype} of shape {list(honest.shape)}"
        )
    if num_byzantine < 0:
        raise ValueError(f"num_byzantine={num_byzantine}: the number of attackers is at least 0")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: one of {', '.join(choices)}")


def origin(honest: Tensor, received: Tensor | None) -> Tensor:
    """Return `received` [d] in the dtype and on the device of the rows, zeros for None.

    Raises:
        ValueError: when it is not as long as the rows.
    """
    if received is None:
        return honest.new_zeros(honest.shape[1])
    if received.shape != honest.shape[1:]:
        raise ValueError(f"received has shape {list(received.shape)}, the vectors have {honest.shape[1]} coordinates")
    return received.to(honest)


def copies(vector: Tensor, num: int) -> Tensor:
    """Return [num, d] of fresh memory, every row the vector."""
    return vector.repeat(num, 1)


def rows(honest: Tensor, num: int) -> Tensor:
    """Return [num, d] of fresh memory: the rows in order, from the first again when there are fewer than num."""
    return honest[torch.arange(num, device=honest.device) % honest.shape[0]]


def normal(honest: Tensor, num: int, seed: int, purpose: str) -> Tensor:
    """Draw [num, d] standard normal, drawn on the CPU so that every device sees the same numbers."""
    drawn = generator(seed, f"attack/{purpose}").standard_normal((num, honest.shape[1]))
    return torch.from_numpy(drawn).to(honest)


def uniform(honest: Tensor, num: int, seed: int, purpose: str) -> Tensor:
    """Draw [num, d] uniform on [0, 1), as `normal` does."""
    drawn = generator(seed, f"attack/{purpose}").random((num, honest.shape[1]))
    return torch.from_numpy(drawn).to(honest)
