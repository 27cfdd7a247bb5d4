"""Attackers among peers: what a peer hears from them is made for that peer, and knows what else it has heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from strategies.attacks import Attack, Knowledge, attack
from strategies.base import Tree
from strategies.seeds import integer

BY_CLASS = ("foreign_class", "noise")
"""Attacks on an output layer that is sent alone, which are told whose columns are whose."""

BEGAN = "began/"
"""Where a peer's state holds the model that its last local steps began from, if attackers want to know it."""


class Victim(NamedTuple):
    """Who attackers craft what they send for.

    Args:
        own: its model [d]. began: the one that its last local steps began from, which crafted vectors push away from.
    """

    peer: int
    iteration: int
    own: Tensor
    began: Tensor


class Intruders(NamedTuple):
    """The attackers of a run.

    Args:
        peers: who they are. section: name and arguments of what they send; None: what they have trained.
        omniscient: they see what the victim has heard from honest peers, and its own model; else their own models.
        begins: the first iteration that vectors are crafted in, counted from 1. seed: the run's.
        num_classes: of an output layer that is sent alone, class by class. foreign: the classes that a victim does not
            own.
    """

    peers: frozenset[int] = frozenset()
    section: Mapping[str, Any] | None = None
    omniscient: bool = True
    begins: int = 1
    seed: int = 0
    num_classes: int = 0
    foreign: Callable[[int], Sequence[int]] = lambda peer: ()

    @property
    def craft(self) -> bool:
        """Whether they send anything but what they have trained."""
        return self.section is not None

    def noted(self, began: Tree) -> dict[str, Tensor]:
        """Return what a peer's state holds for attackers to know, given where its local steps begin."""
        return {f"{BEGAN}{name}": tensor for name, tensor in began.items()} if self.craft else {}

    def victim(self, peer: int, iteration: int, own: Tensor, state: Tree, names: Iterable[str]) -> Victim:
        """Return a peer as attackers see it: its model as a vector, and of its state what was noted of these names."""
        if not self.craft:
            return Victim(peer, iteration, own, own)
        return Victim(peer, iteration, own, torch.cat([state[f"{BEGAN}{name}"].flatten() for name in names]))

    def num_among(self, senders: Sequence[int]) -> int:
        """Return how many of some peers are attackers."""
        return sum(sender in self.peers for sender in senders)

    def crafted(
        self, victim: Victim, senders: Sequence[int], rows: Tensor, aggregate: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return what the victim hears: rows [n, d], those of attackers made for it.

        Args:
            aggregate: `[n, d] -> [d]`, what it would make of models it has heard.
        """
        dishonest = torch.tensor([sender in self.peers for sender in senders], dtype=torch.bool)
        if not self.craft or victim.peer in self.peers or victim.iteration + 1 < self.begins or not dishonest.any():
            return rows
        honest = torch.cat([victim.own[None], rows[~dishonest]]) if self.omniscient else rows[dishonest]
        order = torch.cat([(~dishonest).nonzero(), dishonest.nonzero()]).flatten()
        back = torch.argsort(order)

        def answered(vectors: Tensor) -> Tensor:  # honest vectors, the victim's own first, and then the attackers'
            return aggregate(vectors[1:][back])

        knowledge = Knowledge(
            int(dishonest.sum()),
            answered if self.omniscient else None,
            received=victim.began,
            seed=integer(self.seed, "attack", victim.iteration, victim.peer),
            num_total=1 + len(rows),
        )
        heard = rows.clone()
        heard[dishonest] = self._attack(victim.peer).apply(honest, knowledge).to(rows)
        return heard

    def _attack(self, victim: int) -> Attack:
        assert self.section is not None
        arguments = {key: value for key, value in self.section.items() if key != "name"}
        if self.section["name"] in BY_CLASS:
            arguments |= {"num_classes": self.num_classes, "layout": "rows"}
        if self.section["name"] == "foreign_class":
            arguments["foreign"] = list(self.foreign(victim))
        return attack(self.section["name"], **arguments)
