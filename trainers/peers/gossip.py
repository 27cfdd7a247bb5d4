"""Decentralised learning: a peer puts the models it has heard together with its own, trains, and sends the result.

Source: Lian et al. 2017 (arXiv:1705.09056), "Can decentralized algorithms outperform centralized algorithms?" (D-PSGD),
Algorithm 1, with any number of local steps. Deviation: the gradient is taken at the mixed model (combine, then adapt)
and not at the one before mixing, so that a peer can start from what it heard, however long it was away. In place of
the weighted mean stands any robust aggregator; Karimireddy et al.'s centred clipping is then He et al.'s 2022
(arXiv:2202.01545) self-centred one, as every peer clips around its own model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.peers.mixing import mixing_weights
from strategies.peers.mozi import mozi
from strategies.peers.topology import Topology
from strategies.robust import Context, Robust, finite_rows
from strategies.seeds import generator, integer
from trainers.peers.intruders import Intruders
from trainers.peers.learner import FRESH, OPTIMIZER, Learner
from trainers.peers.messages import Heard

MODEL = "model/"
"""Where a peer's state holds its model."""


class Mixed(NamedTuple):
    """A model put together from several: how many of them counted and were refused, and how far it went astray."""

    model: Tree
    num_used: int
    num_rejected: int
    deviation: float = math.nan


class Joined(NamedTuple):
    """A mixed model as one vector, how many of those heard are in it, and how many were no numbers."""

    vector: Tensor
    num_used: int
    num_rejected: int


class Acted(NamedTuple):
    """What an action comes to: the peer's state, what it sends, and figures."""

    state: Tree
    message: Tree
    loss: float
    num_steps: int
    num_used: int
    num_rejected: int
    extra_bytes: int = 0
    deviation: float = math.nan


class Gossip:
    """Peers that average, robustly or not.

    Args:
        robust: None for the weighted mean of `mixing`.
        num_byzantine: attackers to withstand among those heard; None for as many as there are.
    """

    def __init__(
        self,
        learner: Learner,
        topology: Topology,
        mixing: str,
        robust: Robust | None,
        num_byzantine: int | None,
        intruders: Intruders,
        seed: int,
    ) -> None:
        self._learner, self._topology, self._mixing = learner, topology, mixing
        self._robust, self._num_byzantine, self._intruders = robust, num_byzantine, intruders
        self._seed = seed

    def first(self) -> dict[str, Tensor]:
        """Return the state of a peer that has not acted."""
        first = self._learner.first
        kept = {f"{MODEL}{name}": tensor for name, tensor in first.items()}
        return {**kept, **self._intruders.noted(first), **self._learner.blank()}

    def model(self, state: Tree) -> Tree:
        """Return the model of a peer."""
        return {name.removeprefix(MODEL): tensor for name, tensor in state.items() if name.startswith(MODEL)}

    def parted(self, vector: Tensor) -> Tree:
        """Return a vector as a model."""
        parts = vector.split([tensor.numel() for tensor in self._learner.first.values()])
        return {n: part.view(t.shape) for (n, t), part in zip(self._learner.first.items(), parts, strict=True)}

    def act(self, peer: int, iteration: int, num_steps: int, state: Tree, heard: Heard) -> Acted:
        """Mix, train, and send the model."""
        memory = {name: tensor for name, tensor in state.items() if name.startswith(OPTIMIZER) or name == FRESH}
        mixed = self._mix(peer, iteration, state, heard)
        learned = self._learner.learn(peer, iteration, num_steps, mixed.model, memory)
        kept = {f"{MODEL}{name}": tensor for name, tensor in learned.model.items()}
        after = {**kept, **self._intruders.noted(mixed.model), **learned.memory}
        return Acted(
            after, learned.model, learned.loss, learned.num_steps, mixed.num_used, mixed.num_rejected,
            deviation=mixed.deviation,
        )  # fmt: skip

    def _shares(self, peer: int, senders: Sequence[int]) -> np.ndarray:
        """Return the weights of the own model and of those heard, in that order."""
        ends = np.array([0, len(senders)])
        weights = mixing_weights(self._mixing, self._topology, np.array([peer]), ends, np.array(senders))
        return np.concatenate([weights.own, weights.heard])

    @torch.no_grad()
    def _mix(self, peer: int, iteration: int, state: Tree, heard: Heard) -> Mixed:
        own = self.model(state)
        if not heard.senders:
            return Mixed(own, 0, 0)
        vector = torch.cat([tensor.flatten() for tensor in own.values()])
        num_byzantine = self._num_byzantine
        if num_byzantine is None:
            num_byzantine = self._intruders.num_among(heard.senders)

        def put_together(others: Tensor) -> Joined:
            return self._join(peer, iteration, vector, heard.senders, others, num_byzantine)

        if self._robust is not None:
            try:
                self._robust.check(1 + len(heard.senders), num_byzantine)
            except ValueError:  # too few have been heard for the aggregator: nobody else can be believed
                return Mixed(own, 0, 0)
        victim = self._intruders.victim(peer, iteration, vector, state, own)
        others = self._intruders.crafted(victim, heard.senders, heard.rows(own), lambda rows: put_together(rows).vector)
        joined = put_together(others)
        honest = [place for place, sender in enumerate(heard.senders) if sender not in self._intruders.peers]
        deviation = math.nan
        if len(honest) < len(others):
            mean = torch.cat([vector[None], others[honest]]).mean(0)
            deviation = float((joined.vector - mean).norm() / mean.norm().clamp(min=1e-30))
        return Mixed(self.parted(joined.vector), joined.num_used, joined.num_rejected, deviation)

    def _join(
        self, peer: int, iteration: int, own: Tensor, senders: Sequence[int], others: Tensor, num_byzantine: int
    ) -> Joined:
        """Put the models heard, [n, d], together with the own one."""
        if self._robust is None:
            finite = finite_rows(others)
            num_used = int(finite.sum())
            shares = torch.from_numpy(self._shares(peer, senders)[1:]).to(others)
            if num_used < len(others):
                others, shares = others[finite], shares[finite]
            mixed = (1.0 - shares.sum()) * own + shares @ others  # what cannot be used falls to the own model
            return Joined(mixed, num_used, len(finite) - num_used)
        context = Context(num_byzantine, own=own, center=own, seed=integer(self._seed, "mixing", iteration, peer))
        combined = self._robust.combine(torch.cat([own[None], others]), context)
        return Joined(combined.vector, len(others) - combined.num_rejected, combined.num_rejected)


class Mozi(Gossip):
    """Peers that keep what is near and does well on some of their own examples: `strategies.peers.mozi`.

    Args:
        section: the experiment's `algorithm` section.
    """

    def __init__(
        self, learner: Learner, topology: Topology, section: Mapping[str, Any], intruders: Intruders, seed: int
    ) -> None:
        super().__init__(learner, topology, "metropolis", None, None, intruders, seed)
        self._section = section

    def _join(
        self, peer: int, iteration: int, own: Tensor, senders: Sequence[int], others: Tensor, num_byzantine: int
    ) -> Joined:
        rows = self._learner.partition.rows(peer)
        rng = generator(self._seed, "examination", iteration, peer)
        drawn = np.sort(rng.permutation(rows)[: self._section["examples"]])

        loss = self._learner.losses(drawn)
        found = mozi(
            own, others, lambda vector: loss(self.parted(vector)), self._section["share"], self._section["own_weight"]
        )
        return Joined(found.model, len(found.kept), found.num_rejected)
