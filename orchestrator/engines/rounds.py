"""The rounds engine: a server rule and a population of virtual clients over a fixed pool of workers.

Time is virtual. A step of the server is:

    start     the pacing names clients; each gets a ticket that comes due by its speed
    wait      tickets come due in virtual order until the pacing says that the server acts
    compute   the finished participations are trained on the workers, block by block
    fold      block sums are added in block order, whatever the order they arrive in
    act       the rule moves the model; the state after the step is all that the next one depends on

The state is a value and changes only between steps, so a step that is interrupted, or whose worker is lost, can
be thrown away and done again with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from cluster.errors import RemoteFailure
from cluster.executor import Call, Executor, WorkerSpec
from orchestrator.config.schema import Experiment, LognormalSpeed
from orchestrator.engines.base import RunState, StepReport
from orchestrator.errors import WorkerError
from orchestrator.partition_summary import summarise
from orchestrator.preparing import Prepared
from strategies.base import Fold, ServerRule
from strategies.federated import server_rule
from strategies.federated.behaviour import constant_speed, duration_s, lognormal_speed
from strategies.federated.clock import Ticket, VirtualClock
from strategies.federated.folding import add, block_size_for, blocks
from strategies.federated.pacing import Pacing, barrier
from strategies.federated.sampling import uniform
from strategies.seeds import generator
from trainers import modules, wire
from trainers.cohort import BlockReport, ClientReport, EvalReport
from trainers.local import LocalSettings
from trainers.threads import intra_op_threads

EVALUATION_BLOCK = 1000
"""Test examples a worker evaluates at a time; fixed, since float sums depend on it."""


@dataclass
class RoundsEngine:
    """Runs the steps of a federated experiment.

    Args:
        experiment: what to run. prepared: its data, partition and model. executor: started here.
        sys_path: folders where workers find the user's own modules.
    """

    experiment: Experiment
    prepared: Prepared
    executor: Executor
    sys_path: tuple[str, ...] = ()
    _rule: ServerRule = field(init=False)
    _settings: LocalSettings = field(init=False)
    _ends: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._rule = server_rule(**self._rule_arguments())
        self._settings = LocalSettings.from_section(self.experiment.strategy.client.model_dump())

    # -- life cycle ------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return sizes and labels of the partition."""
        return summarise(self.experiment, self.prepared)

    def initial_state(self) -> RunState:
        """Return the state before the first step: the freshly built model, at virtual time 0."""
        model = modules.snapshot(self.prepared.model)
        return RunState(0, model, self._rule.init(model))

    def start(self) -> None:
        """Share the data once and build the workers."""
        experiment = self.experiment
        self.executor.start(
            WorkerSpec(
                "trainers.cohort:CohortWorker",
                {
                    "model": experiment.model.model_dump(),
                    "algorithm": self._rule_arguments(),
                    "client": experiment.strategy.client.model_dump(),
                    "dataset": self.executor.share(self.prepared.dataset),
                    "partition": self.executor.share(self.prepared.partition),
                    "seed": experiment.seed,
                    "on_failure": experiment.strategy.on_failure,
                    "threads": experiment.cluster.threads_per_worker,
                    "device": experiment.cluster.device,
                },
                self.sys_path,
            )
        )

    def steps(self, state: RunState) -> Iterator[StepReport]:
        """Yield one report a step, from `state` to the last round. Evaluates an untrained model first (step 0).

        Raises:
            WorkerError: when a client's code raises, an update is not finite, or workers are lost for good.
        """
        rounds, every = self.experiment.strategy.algorithm.rounds, self.experiment.evaluate_every
        if state.step == 0 and rounds:
            yield StepReport(state, self._evaluate(state), ())
        pacing = self._pacing()
        while state.step < rounds:
            # The driver's share is small sums. With more threads than one, torch's idle ones spin after each of them
            # and took 70 ms of CPU a round from workers on the same cores (benchmarks/overhead.py, two cores).
            with intra_op_threads(1):
                state, values, clients = self._step(state, pacing)
            if state.step % every == 0 or state.step == rounds:
                values |= self._evaluate(state)
            yield StepReport(state, values, clients)
            if self._ends:
                return

    def finish_early(self) -> None:
        """End after the step that was yielded last; every state is whole."""
        self._ends = True

    # -- one step --------------------------------------------------------------------------------------------

    def _step(self, state: RunState, pacing: Pacing) -> tuple[RunState, dict[str, float], tuple[ClientReport, ...]]:
        began = time.perf_counter()
        clock = VirtualClock(state.now_s, state.started, state.in_flight)
        for client in pacing.starters(state.step):
            clock.start(client, state.step, self._duration_s(client))
        finished: list[Ticket] = []
        while not pacing.ready(state.step, finished):
            finished.append(clock.next())
        folded, reports, values = self._compute(state, finished)
        server, model = self._rule.step(state.server, state.model, folded)
        after = replace(
            state, step=state.step + 1, model=model, server=server,
            now_s=clock.now_s, started=clock.order, in_flight=clock.tickets,
        )  # fmt: skip
        round_s = time.perf_counter() - began
        busy_s = values["time/compute_s"] + values["time/wire_s"]
        values["time/round_s"] = round_s
        values["time/wait_s"] = max(0.0, round_s * max(1, self.executor.num_workers) - busy_s)
        return after, values, reports

    def _compute(
        self, state: RunState, finished: list[Ticket]
    ) -> tuple[Fold, tuple[ClientReport, ...], dict[str, float]]:
        """Train the finished participations on the workers and fold their contributions in block order."""
        round_ = state.step + 1
        cohort = [ticket.client for ticket in finished]
        groups = blocks(cohort, self.experiment.strategy.fold_block or block_size_for(len(cohort)))
        wire_s = -time.perf_counter()
        broadcast = wire.encode(state.model)
        handle = self.executor.share(broadcast)
        wire_s += time.perf_counter()
        calls = [Call("train", (round_, group, state.step, handle)) for group in groups]
        waiting: dict[int, BlockReport] = {}
        reports: list[ClientReport] = []
        folded: Fold | None = None
        due, compute_s, uplink_bytes = 0, 0.0, 0
        try:
            for answer in self.executor.run(calls):
                waiting[answer.index] = answer.value
                while due in waiting:
                    report = waiting.pop(due)
                    due += 1
                    compute_s += report.compute_s
                    wire_s += report.wire_s
                    reports.extend(report.clients)
                    if report.total is None:
                        continue
                    wire_s -= time.perf_counter()
                    part = Fold(wire.decode(report.total), report.weight, report.num_clients)
                    folded = part if folded is None else add([folded, part])
                    wire_s += time.perf_counter()
                    uplink_bytes += report.num_clients * broadcast.size
        except RemoteFailure as failure:
            raise _worker_error(failure, f"round {round_}", groups) from failure
        finally:
            self.executor.release(handle)
        if folded is None:
            first = reports[0]
            raise WorkerError(
                f"no client of the round could train: {first.failed}",
                place=f"round {round_}, client {first.client}",
                hint="see the client's data and code, or lower strategy.client.optimizer.lr",
            )
        trained = [report for report in reports if not report.failed]
        examples = sum(report.num_examples for report in trained)
        values = {
            "train/loss": sum(report.loss * report.num_examples for report in trained) / examples,
            "train/num_examples": float(examples),
            "train/num_clients": float(len(trained)),
            "comm/downlink_bytes": float(len(cohort) * broadcast.size),
            "comm/uplink_bytes": float(uplink_bytes),
            "time/compute_s": compute_s,
            "time/wire_s": wire_s,
        }
        return folded, tuple(reports), values

    def _evaluate(self, state: RunState) -> dict[str, float]:
        """Return loss and accuracy of the state's model on the whole test set."""
        began = time.perf_counter()
        total, size = len(self.prepared.dataset.test_x), self.experiment.evaluate.batch_size
        handle = self.executor.share(wire.encode(state.model))
        calls = [
            Call("evaluate", (start, min(start + EVALUATION_BLOCK, total), size, state.step, handle))
            for start in range(0, total, EVALUATION_BLOCK)
        ]
        reports: dict[int, EvalReport] = {}
        try:
            for answer in self.executor.run(calls):
                reports[answer.index] = answer.value
        except RemoteFailure as failure:
            raise _worker_error(failure, f"evaluation after round {state.step}", None) from failure
        finally:
            self.executor.release(handle)
        ordered = [reports[index] for index in range(len(calls))]
        predictions = sum(report.num_predictions for report in ordered)
        return {
            "test/accuracy": sum(report.num_correct for report in ordered) / predictions,
            "test/loss": sum(report.loss_sum for report in ordered) / predictions,
            "time/evaluate_s": time.perf_counter() - began,
        }

    # -- what the experiment says ------------------------------------------------------------------------------

    def _rule_arguments(self) -> dict[str, Any]:
        section = self.experiment.strategy.algorithm
        return {
            "name": section.name, "num_clients": self.prepared.partition.num_clients,
            "server_lr": section.server_lr, "weighting": section.weighting,
        }  # fmt: skip

    def _pacing(self) -> Pacing:
        num_clients, cohort = self.prepared.partition.num_clients, self.experiment.strategy.algorithm.cohort
        size = num_clients if cohort == "all" else cohort

        @lru_cache(maxsize=2)
        def cohort_of(step: int) -> tuple[int, ...]:
            return uniform(num_clients, size, generator(self.experiment.seed, "cohort", step + 1))

        return barrier(cohort_of)

    def _duration_s(self, client: int) -> float:
        behaviour = self.experiment.strategy.behaviour
        speed = (
            partial(lognormal_speed, sigma=behaviour.speed.sigma)
            if isinstance(behaviour.speed, LognormalSpeed)
            else constant_speed
        )
        num_steps = self._settings.num_steps(len(self.prepared.partition.rows(client)))
        return duration_s(num_steps, step_s=behaviour.step_s, speed=speed(self.experiment.seed, client))


def _worker_error(failure: RemoteFailure, place: str, groups: list[tuple[int, ...]] | None) -> WorkerError:
    """Say a remote failure in a user's words: which round, which clients, which worker, and what to do."""
    if groups is not None and 0 <= failure.call_index < len(groups):
        group = groups[failure.call_index]
        place += f", client {group[0]}" if len(group) == 1 else f", clients {group[0]} to {group[-1]}"
    if failure.lost:
        hint = "the run directory holds the last checkpoint: orchestrator resume RUN_DIR"
    elif "NotFinite" in failure.reason:
        hint = "lower strategy.client.optimizer.lr, set strategy.client.clip_norm=1, or strategy.on_failure=drop"
    else:
        hint = "mend the code above, or set strategy.on_failure=drop to go on without failing clients"
    return WorkerError(failure.reason, failure.worker, failure.node, place, failure.remote_traceback, hint)


def model_bytes(model: Mapping[str, Tensor]) -> int:
    """Bytes of a model on the wire, headers included."""
    return int(wire.encode(model).size)
