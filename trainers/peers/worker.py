"""The worker of the peers engine: lets blocks of peers act, and measures their models.

Like the worker of the rounds engine it keeps nothing of a peer: what it is asked carries all that the answer depends
on, so any worker may answer, twice if need be, with the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression import build
from strategies.partition import Partition
from strategies.peers.topology import Topology
from strategies.robust import robust
from strategies.seeds import integer
from trainers import models, wire
from trainers.data.base import Dataset
from trainers.frozen import Head
from trainers.local import LocalSettings
from trainers.peers.bristle import Bristle
from trainers.peers.gossip import Acted, Gossip, Mozi
from trainers.peers.intruders import Intruders
from trainers.peers.learner import Learner
from trainers.peers.messages import ActionReport, BlockReport, Heard, PeerEvalReport, PeerWork
from trainers.pretraining import adopt
from trainers.threads import intra_op_threads


class PeerFailed(Exception):
    """A peer's action raised; the message names the peer and the reason."""


class PeerWorker:
    """Acts and evaluates for the peers engine.

    Args:
        model: the experiment's `model` section. head: of a model whose features are the data; None: the whole model.
        algorithm, client: sections of the strategy.
        dataset, partition: the data, and which rows each peer owns; attackers that craft may own none.
        tests: which rows Bristle's peers test on.
        begun: tensors that models begin with, encoded, as pretraining left them; None where there was none.
        topology: who is linked to whom. mixing: weights of the plain mean. aggregator: pre-aggregators and aggregator
            as sections, or None for that mean. num_byzantine: see `Gossip`.
        attackers: who they are. attack: arguments of `Intruders`.
        seed: the run's. compression: codecs that messages pass. threads: intra-op threads.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        head: Head | None,
        algorithm: Mapping[str, Any],
        client: Mapping[str, Any],
        dataset: Dataset,
        partition: Partition,
        topology: Topology,
        mixing: str,
        aggregator: tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]] | None,
        num_byzantine: int | None,
        attackers: Sequence[int],
        attack: Mapping[str, Any],
        seed: int,
        tests: Partition | None = None,
        begun: pa.Buffer | None = None,
        compression: Sequence[Mapping[str, Any]] = (),
        threads: int = 1,
    ) -> None:
        self._seed, self._threads, self._partition = seed, threads, partition
        shape, classes = dataset.input_shape, dataset.num_classes
        if head is not None:
            network = head.build()
        else:
            network = models.build(model, input_shape=shape, num_classes=classes, seed=integer(seed, "model"))
            if begun is not None:
                adopt(network, wire.decode(begun, copy=False))
        self._learner = Learner(network, dataset, partition, LocalSettings.from_section(client), seed)
        intruders = Intruders(
            frozenset(attackers), seed=seed, num_classes=classes, foreign=self._learner.foreign, **attack
        )
        self._program: Bristle | Gossip
        if algorithm["name"] == "bristle":
            assert tests is not None
            self._program = Bristle(self._learner, algorithm, tests, topology.num_peers, intruders, seed)
        elif algorithm["name"] == "mozi":
            self._program = Mozi(self._learner, topology, algorithm, intruders, seed)
        else:
            chain = robust(*aggregator) if aggregator is not None else None
            self._program = Gossip(self._learner, topology, mixing, chain, num_byzantine, intruders, seed)
        self._codec = build(compression).bind(self._learner.first) if compression else None
        self._plain_bytes = wire.size(self._learner.first)

    def first(self) -> Tree:
        """Return the state of a peer that has not acted."""
        return self._program.first()

    def model(self, state: Tree) -> Tree:
        """Return the model in a peer's state, or the models in many peers'."""
        return self._program.model(state)

    def act(self, works: Sequence[PeerWork], states: pa.Buffer, messages: pa.Buffer | None) -> BlockReport:
        """Let a block of peers act.

        Args:
            states: of these peers, name -> tensor [k, ...] in their order. messages: name -> tensor [m, ...].
        """
        with intra_op_threads(self._threads):
            began = time.perf_counter()
            before = wire.decode(states)
            sent = wire.decode(messages, copy=False) if messages is not None else {}
            wire_s = time.perf_counter() - began
            began = time.perf_counter()
            after, out, reports = [], [], []
            for place, work in enumerate(works):
                state = {name: tensor[place] for name, tensor in before.items()}
                acted = self._act(work, state, sent)
                message, num_bytes = self._sent(work, acted.message)
                after.append(acted.state)
                out.append(message)
                reports.append(
                    ActionReport(
                        work.peer, acted.loss, acted.num_steps, len(work.senders), acted.num_used, acted.num_rejected,
                        num_bytes, acted.extra_bytes, acted.deviation,
                    )
                )  # fmt: skip
            compute_s = time.perf_counter() - began
            began = time.perf_counter()
            payloads = wire.encode(_stacked(after)), wire.encode(_stacked(out))
            wire_s += time.perf_counter() - began
        return BlockReport(*payloads, tuple(reports), compute_s, wire_s)

    def evaluate(
        self, peers: Sequence[int], states: pa.Buffer, start: int, stop: int, batch_size: int
    ) -> tuple[PeerEvalReport, ...]:
        """Measure the models of some peers on test examples `start:stop`."""
        with intra_op_threads(self._threads):
            rows = wire.decode(states, copy=False)
            reports = []
            for place, peer in enumerate(peers):
                model = self._program.model({name: tensor[place] for name, tensor in rows.items()})
                reports.append(PeerEvalReport(peer, *self._learner.measure(model, range(start, stop), batch_size)))
            return tuple(reports)

    def _act(self, work: PeerWork, state: Tree, sent: Tree) -> Acted:
        if not len(self._partition.rows(work.peer)):  # an attacker without data, whose messages are crafted by whom
            return Acted(state, self._program.model(state), math.nan, 0, 0, 0)  # they are meant for
        places = torch.tensor(work.places, dtype=torch.int64)
        heard = Heard(work.senders, {name: tensor.index_select(0, places) for name, tensor in sent.items()})
        try:
            return self._program.act(work.peer, work.iteration, work.num_steps, state, heard)
        except Exception as error:  # a user's model may raise anything
            raise PeerFailed(f"peer {work.peer}: {type(error).__name__}: {error}") from error

    def _sent(self, work: PeerWork, message: Tree) -> tuple[Tree, int]:
        """Return a message as it arrives, and the length of what travels."""
        if self._codec is None:
            return message, self._plain_bytes
        payload = self._codec.seeded(integer(self._seed, "codec", work.iteration, work.peer)).encode(message)
        return self._codec.decode(payload), len(payload)


def _stacked(trees: Sequence[Tree]) -> dict[str, Tensor]:
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}
