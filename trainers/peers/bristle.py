"""Bristle's peers: they judge what they hear on their own test samples, class by class, and send an output layer.

The algorithm is `strategies.peers.bristle`; here it meets the data. A peer owns the classes of its training examples.
Its test samples are of these classes and are nobody's training examples. How many classes it shares with another peer
it learns once, from a private set intersection, when it first hears of it.

Source: Verbraeken, de Vos, Pouwelse 2021 (arXiv:2110.11006).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.partition import Partition
from strategies.peers.bristle import cwr, integrator, prioritizer, scoring
from strategies.peers.bristle.intersection import Party
from strategies.seeds import generator
from trainers.peers.gossip import Acted
from trainers.peers.intruders import Intruders
from trainers.peers.learner import FRESH, OPTIMIZER, Learner
from trainers.peers.messages import Heard

CONSOLIDATED, SHARED = "consolidated", "shared_classes"
"""Where a peer's state holds its output layer [C, F], and how many classes it shares with each peer (-1: unknown)."""


class Bristle:
    """Peers that train an output layer and integrate others' by performance.

    Args:
        section: the experiment's `algorithm` section. tests: which rows each peer tests on.
        num_peers: attackers included.
    """

    def __init__(
        self,
        learner: Learner,
        section: Mapping[str, Any],
        tests: Partition,
        num_peers: int,
        intruders: Intruders,
        seed: int,
    ) -> None:
        self._learner, self._tests, self._intruders, self._seed = learner, tests, intruders, seed
        self._num_peers, self._section = num_peers, section
        (self._name,) = learner.first
        choose = section["prioritizer"]
        arguments = {key: value for key, value in choose.items() if key != "name"}
        self._settings = integrator.Settings(
            prioritizer.prioritizer(choose["name"], **arguments),
            section["metric"], section["penalty"], **_foreign(section["foreign"]),
        )  # fmt: skip
        self._known_tests: dict[int, scoring.Exam] = {}

    def first(self) -> dict[str, Tensor]:
        """Return the state of a peer that has not acted: its output layer is zero."""
        zero = torch.zeros_like(self._learner.first[self._name])
        shared = torch.full((self._num_peers,), -1, dtype=torch.int64)
        noted = self._intruders.noted({self._name: zero})
        return {CONSOLIDATED: zero, SHARED: shared, **noted, **self._learner.blank()}

    def model(self, state: Tree) -> Tree:
        """Return the model of a peer."""
        return {self._name: state[CONSOLIDATED]}

    def act(self, peer: int, iteration: int, num_steps: int, state: Tree, heard: Heard) -> Acted:
        """Integrate what was heard, make local steps, and send the consolidated layer."""
        shared, extra_bytes = self._intersected(peer, state[SHARED], heard.senders)
        found: list[integrator.Integration] = []

        def integrate(own: Tensor) -> Tensor:
            rng = generator(self._seed, "prioritizer", iteration, peer)
            like = {self._name: state[CONSOLIDATED]}
            victim = self._intruders.victim(peer, iteration, own.T.flatten(), state, like)
            flat = self._intruders.crafted(victim, heard.senders, heard.rows(like), _no_aggregate)
            others = flat.view(len(flat), *own.T.shape).transpose(1, 2).contiguous()
            num_shared = None if self._section["intersection"] == "none" else shared[list(heard.senders)].tolist()
            done = integrator.integrate(own, others, self._test(peer), rng, num_shared, self._settings, iteration)
            found.append(done)
            return done.model

        memory = {name: tensor for name, tensor in state.items() if name.startswith(OPTIMIZER) or name == FRESH}
        learned: list[Any] = []
        began: dict[str, Tensor] = {}

        def train(live: Tensor, moments: Tree) -> tuple[Tensor, Tree]:
            began[self._name] = live.T.contiguous()
            done = self._learner.learn(peer, iteration, num_steps, began, moments)
            learned.append(done)
            return done.model[self._name].T, done.memory

        before = cwr.Peer(state[CONSOLIDATED].T, state[CONSOLIDATED].T, memory)
        after = cwr.iteration(before, self._owned(peer), train, integrate if heard.senders else None)
        consolidated = after.cw.T.contiguous()
        num_used = int((found[0].familiar.sum(1) + found[0].foreign > 0).sum()) if found else 0
        return Acted(
            {CONSOLIDATED: consolidated, SHARED: shared, **self._intruders.noted(began), **after.moments},
            {self._name: consolidated},
            learned[0].loss,
            learned[0].num_steps,
            num_used,
            found[0].num_rejected if found else 0,
            extra_bytes,
        )

    def _owned(self, peer: int) -> Tensor:
        mask = torch.zeros(self._learner.dataset.num_classes, dtype=torch.bool)
        mask[self._learner.owned(peer)] = True
        return mask

    def _test(self, peer: int) -> scoring.Exam:
        if peer not in self._known_tests:
            dataset = self._learner.dataset
            x, y = self._learner.tensors(dataset.train_x, dataset.train_y, self._tests.rows(peer))
            self._known_tests[peer] = scoring.exam(x, y, self._learner.owned(peer))
        return self._known_tests[peer]

    def _intersected(self, peer: int, known: Tensor, senders: tuple[int, ...]) -> tuple[Tensor, int]:
        """Ask those heard for the first time how many classes are shared; return all answers and the bytes it took."""
        new = [sender for sender in senders if known[sender] < 0]
        if not new or self._section["intersection"] == "none":
            return known, 0
        shared, num_bytes = known.clone(), 0
        for sender in new:
            if self._section["intersection"] == "known":
                shared[sender] = len({*self._claimed(peer)} & {*self._claimed(sender)})
                continue
            asking = self._party(peer, sender, "asking")
            answering = self._party(sender, peer, "answering")
            request = asking.request()
            response = answering.respond(request)
            shared[sender] = asking.cardinality(response)
            num_bytes += len(request) + len(response)
        return shared, num_bytes

    def _party(self, peer: int, other: int, role: str) -> Party:
        secret = generator(self._seed, f"intersection {role}", peer, other).bytes(32)
        return Party([f"class {label}" for label in self._claimed(peer)], secret)

    def _claimed(self, peer: int) -> list[int]:
        """Return the classes that a peer says it owns; an attacker that crafts what it sends says all."""
        if peer in self._intruders.peers and self._intruders.craft:
            return list(range(self._learner.dataset.num_classes))
        return self._learner.owned(peer)


def _foreign(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the settings a section says about foreign classes."""
    return {"foreign": section["name"], **{key: value for key, value in section.items() if key != "name"}}


def _no_aggregate(rows: Tensor) -> Tensor:
    raise ValueError("Bristle has no aggregator that an attack could ask; use one that does not optimise against it")


def test_rows(
    labels: np.ndarray, partition: Partition, per_class: int, seed: int, own: frozenset[int] = frozenset()
) -> list[np.ndarray]:
    """Draw test samples for every peer: so many of each class it owns, none of them anybody's training example.

    Args:
        own: peers that test on their training examples, as attackers do that altered them.

    Raises:
        ValueError: when a class has too few examples left.
    """
    free = np.ones(len(labels), bool)
    free[partition.order] = False
    rows = []
    for peer in range(partition.num_clients):
        held = partition.rows(peer)
        if peer in own or not len(held):
            rows.append(held)
            continue
        rng, drawn = generator(seed, "bristle tests", peer), []
        for label in np.unique(labels[held]):
            pool = np.flatnonzero((labels == label) & free)
            if len(pool) < per_class:
                raise ValueError(
                    f"peer {peer} needs {per_class} test samples of class {label}, but {len(pool)} are left that "
                    f"nobody trains on: lower algorithm.test_examples, or give peers fewer examples"
                )
            drawn.append(rng.choice(pool, per_class, replace=False))
        rows.append(np.sort(np.concatenate(drawn)))
    return rows
