"""The peers engine: learning without a server, on virtual time, over a fixed pool of workers.

    plan      virtual time says who acts in which order, what each has heard by then, and who hears it
    act       wave by wave, blocks of peers integrate, train and send on the workers
    keep      states, and the messages that somebody may still read, are what the next step depends on

Peers are rows of a few tensors, so thousands cost what their numbers weigh. A wave is cut into blocks by peer alone;
each peer's answer depends on its own state and what it heard, so neither the workers nor the blocks move a bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import RemoteFailure
from cluster.executor import Call, Executor, WorkerSpec
from orchestrator.checkpoints import CheckpointStore
from orchestrator.client_store import ClientStore
from orchestrator.engines.base import RunState, StepReport
from orchestrator.engines.cohorts import worker_error
from orchestrator.engines.mailbox import Links, Mailbox
from orchestrator.engines.society import Society, society
from orchestrator.engines.stepping import Step, stepping
from orchestrator.errors import WorkerError
from orchestrator.partition_summary import summarise
from orchestrator.preparing import Prepared
from strategies.base import State, Tree
from strategies.federated.clock import Clock
from strategies.federated.sampling import uniform
from strategies.federated.timeline import Starved
from strategies.peers.actions import Wave
from strategies.peers.clock import GossipClock, from_columns, to_columns
from strategies.peers.gossip import opening, plan_step
from strategies.seeds import generator
from trainers import wire
from trainers.peers import ActionReport, BlockReport, PeerEvalReport, PeerWork

NUM_BLOCKS = 16
"""Blocks of a wave: small enough to keep several workers evenly busy, large enough to be worth a call."""

PEERS, CLOCK = "peers", "clock"
"""Slots of a run's server state: the peers' states, row by row, and virtual time."""


@dataclass
class PeersEngine:
    """Runs the steps of an experiment without a server.

    Args:
        prepared: its data, partition and model. executor: started here.
        sys_path: folders where workers find the user's own modules.
    """

    prepared: Prepared
    executor: Executor
    sys_path: tuple[str, ...] = ()
    clients: ClientStore | None = None
    store: CheckpointStore | None = None
    _society: Society = field(init=False)
    _ends: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._society = society(self.prepared)

    # -- life cycle ------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return sizes and labels of the partition, the links, and who attacks."""
        return {**summarise(self.prepared.experiment, self.prepared), **self._society.summary()}

    def initial_state(self) -> RunState:
        """Return the state before the first step: every peer as it is built, at virtual time 0."""
        first, num_peers = self._society.first(), self._society.peers.num_peers
        peers = {name: tensor.expand(num_peers, *tensor.shape).clone() for name, tensor in first.items()}
        clock = opening(self._society.peers, self._society.pace)
        return self._state(0, peers, clock, Mailbox(), Links())

    def start(self) -> None:
        """Share the data once and build the workers."""
        shared = {name: self.executor.share(value) for name, value in self._society.shared.items()}
        self.executor.start(
            WorkerSpec("trainers.peers.worker:PeerWorker", {**self._society.worker, **shared}, self.sys_path)
        )

    def steps(self, state: RunState) -> Iterator[StepReport]:
        """Yield one report a step, from `state` to the last.

        Raises:
            WorkerError: when a peer's code raises, workers are lost for good, or all peers have stopped for ever.
        """
        experiment = self.prepared.experiment
        last, every = experiment.strategy.num_steps, experiment.evaluate_every
        yield from stepping(state, last, every, self._step, self._evaluate, lambda: self._ends)

    def finish_early(self) -> None:
        """End after the step that was yielded last; every state is whole."""
        self._ends = True

    # -- one step --------------------------------------------------------------------------------------------

    def _step(self, state: RunState) -> Step:
        yield  # nothing is done early
        began = time.perf_counter()
        clock = from_columns({name: tensor.numpy() for name, tensor in state.server[CLOCK].items()})
        mailbox, links = Mailbox.of(state.server), Links.of(state.server)
        peers = {name: tensor.clone() for name, tensor in state.server[PEERS].items()}
        try:
            step, after = plan_step(self._society.peers, self._society.pace, clock)
        except Starved as error:
            raise WorkerError(
                str(error),
                place=f"iteration {state.step + 1}",
                hint="see availability, dropout and stops of strategy.behaviour; what was trained so far is kept",
            ) from error
        reports: list[ActionReport] = []
        compute_s = wire_s = 0.0
        for wave in step.waves:
            answers = self._act(wave, peers, mailbox, state.step)
            compute_s += sum(answer.compute_s for answer in answers)
            wire_s += sum(answer.wire_s for answer in answers)
            acted = [report for answer in answers for report in answer.actions]
            links = links.with_sent(wave, {report.peer: report.message_bytes for report in acted})
            reports += acted
        mailbox = mailbox.only(after.needed)
        values = self._figures(reports, state.step) | {
            "comm/num_messages": float(step.attempted),
            "comm/num_lost": float(step.lost),
            "comm/uplink_bytes": float(links.num_bytes - Links.of(state.server).num_bytes)
            + sum(report.extra_bytes for report in reports),
            "time/compute_s": compute_s,
            "time/wire_s": wire_s,
            "time/round_s": time.perf_counter() - began,
        }
        return StepReport(self._state(state.step + 1, peers, after, mailbox, links), values)

    def _act(self, wave: Wave, peers: dict[str, Tensor], mailbox: Mailbox, step: int) -> list[BlockReport]:
        """Let a wave of peers act, and put their states and messages in place."""
        actions = sorted(wave.actions(), key=lambda action: action.peer)
        wanted, messages = mailbox.gathered({one for action in actions for one in action.inbox})
        handle = self.executor.share(wire.encode(messages)) if wanted else None
        works = [
            PeerWork(
                action.peer, action.iteration, action.num_steps, tuple(sender for sender, _ in action.inbox),
                tuple(wanted[one] for one in action.inbox),
            )
            for action in actions
        ]  # fmt: skip
        blocks = _blocks(works)
        calls = [Call("act", (block, _rows(peers, [work.peer for work in block]), handle)) for block in blocks]
        answers: dict[int, BlockReport] = {}
        try:
            for answer in self.executor.run(calls):
                answers[answer.index] = answer.value
        except RemoteFailure as failure:
            groups = [[work.peer for work in block] for block in blocks]
            raise worker_error(failure, f"iteration {step + 1}", groups) from failure
        finally:
            if handle is not None:
                self.executor.release(handle)
        for index, block in enumerate(blocks):
            places = torch.tensor([work.peer for work in block])
            for name, rows in wire.decode(answers[index].states, copy=False).items():
                peers[name][places] = rows
            sent = wire.decode(answers[index].messages)
            for row, work in enumerate(block):
                mailbox.put((work.peer, work.iteration), {name: tensor[row] for name, tensor in sent.items()})
        return [answers[index] for index in range(len(blocks))]

    def _state(self, step: int, peers: Tree, clock: GossipClock, mailbox: Mailbox, links: Links) -> RunState:
        columns = {name: torch.from_numpy(np.array(c)) for name, c in to_columns(clock).items()}
        server: State = {PEERS: peers, CLOCK: columns, **mailbox.slots(), **links.slots()}
        model = self._society.mean_model(peers)
        return RunState(step, model, server, Clock(now_s=clock.now_s))

    def _figures(self, reports: Sequence[ActionReport], step: int) -> dict[str, float]:
        honest = [report for report in reports if report.peer in self._society.honest]
        losses = [report.loss for report in honest if not math.isnan(report.loss)]
        heard = sum(report.num_heard for report in honest)
        astray = [report.deviation for report in honest if not math.isnan(report.deviation)]
        return {
            **({"train/loss": sum(losses) / len(losses)} if losses else {}),
            **({"robust/deviation": sum(astray) / len(astray)} if astray else {}),
            "train/num_peers": float(len(honest)),
            "train/num_steps": float(sum(report.num_steps for report in honest)),
            "robust/num_rejected": float(sum(report.num_rejected for report in honest)),
            "robust/num_used": sum(report.num_used for report in honest) / max(1, len(honest)),
            "robust/num_heard": heard / max(1, len(honest)),
        }

    # -- evaluation ------------------------------------------------------------------------------------------

    def _evaluate(self, state: RunState) -> dict[str, float]:
        """Return the figures of honest peers' models on the test data, every one counting alike."""
        settings, began = self.prepared.experiment.evaluate, time.perf_counter()
        peers = sorted(self._society.honest)
        size = settings.clients.sample
        if size != "all" and size < len(peers):
            drawn = uniform(len(peers), size, generator(self.prepared.experiment.seed, "evaluated peers", state.step))
            peers = [peers[place] for place in drawn]
        num = self._society.num_tests
        reports = self._measured(state, peers, range(num))
        accuracy = np.array([report.num_correct for report in reports]) / num
        values = {
            "test/accuracy": float(accuracy.mean()),
            "test/accuracy_lowest": float(accuracy.min()),
            "test/accuracy_spread": float(accuracy.std()),
            "test/loss": float(np.mean([report.loss_sum for report in reports])) / num,
        }
        if self._society.num_probes:
            probed = self._measured(state, peers, range(num, num + self._society.num_probes))
            hits = np.array([report.num_correct for report in probed]) / self._society.num_probes
            values["attack/success"] = float(hits.mean())
        return {**values, "time/evaluate_s": time.perf_counter() - began}

    def _measured(self, state: RunState, peers: Sequence[int], examples: range) -> list[PeerEvalReport]:
        """Return each peer's figures on a range of the test examples."""
        blocks, states = _blocks(peers), state.server[PEERS]
        size = self.prepared.experiment.evaluate.batch_size
        calls = [
            Call("evaluate", (block, _rows(states, block), examples.start, examples.stop, size)) for block in blocks
        ]
        reports: dict[int, tuple[PeerEvalReport, ...]] = {}
        try:
            for answer in self.executor.run(calls):
                reports[answer.index] = answer.value
        except RemoteFailure as failure:
            raise worker_error(failure, f"evaluation after iteration {state.step}", blocks) from failure
        return [report for index in range(len(blocks)) for report in reports[index]]


def _blocks(items: Sequence[Any]) -> list[list[Any]]:
    count = max(1, min(NUM_BLOCKS, len(items)))
    cuts = [len(items) * place // count for place in range(count + 1)]
    return [list(items[start:stop]) for start, stop in pairwise(cuts)]


def _rows(peers: Mapping[str, Tensor], which: Sequence[int]) -> Any:
    places = torch.tensor(list(which))
    return wire.encode({name: tensor[places] for name, tensor in peers.items()})
