"""The rounds engine: a server rule and a population of virtual clients over a fixed pool of workers.

Time is virtual. A step of the server is:

    plan      clients start and finish on the virtual clock until the pacing says that the server acts
    train     the finished participations are trained on the workers, block by block, each from the version it pulled
    fold      block sums are added along a fixed tree, whatever the order they arrive in
    act       the rule moves the model; the state after the step is all that the next one depends on

The state is a value and changes only between steps, so a step that is interrupted, or whose worker is lost, can
be thrown away and done again with the same bits. What is remembered of single clients lies in a store that is
written when a step is whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.executor import Executor, WorkerSpec
from orchestrator.checkpoints import CheckpointStore
from orchestrator.client_rule import rule_summary
from orchestrator.client_store import ClientStore
from orchestrator.config.codecs import Codec
from orchestrator.config.schema import Experiment
from orchestrator.engines.base import RunState, StepReport
from orchestrator.engines.cohorts import Broadcasts, Cohorts, Outcome
from orchestrator.engines.defence import SLOTS, Defended, guard
from orchestrator.engines.evaluating import client_losses, evaluate, evaluate_clients
from orchestrator.engines.stepping import Step, stepping
from orchestrator.engines.virtual import Virtual, virtual
from orchestrator.errors import WorkerError
from orchestrator.partition_summary import summarise
from orchestrator.preparing import Prepared
from orchestrator.vectorising import how_trained, num_blocks
from strategies.base import Fold, ServerRule, Tree
from strategies.federated import server_rule
from strategies.federated.clock import Ticket
from strategies.federated.pacing import Synchronous
from strategies.federated.sampling import Feedback, uniform
from strategies.federated.stacking import Stack
from strategies.federated.timeline import Starved, StepPlan, plan, shortlist
from strategies.seeds import generator
from trainers import wire
from trainers.batched import Choice
from trainers.cohort import ClientReport, Work
from trainers.cohort.bodies import body
from trainers.cohort.releases import downlink_codec, release

SAMPLER = "sampler"
"""The slot of a run's server state that holds what the sampler has learned; no rule uses the name."""


@dataclass
class RoundsEngine:
    """Runs the steps of a federated experiment.

    Args:
        experiment: what to run. prepared: its data, partition and model. executor: started here.
        sys_path: folders where workers find the user's own modules.
        clients: what is remembered of single clients.
    """

    experiment: Experiment
    prepared: Prepared
    executor: Executor
    sys_path: tuple[str, ...] = ()
    clients: ClientStore | None = None
    store: CheckpointStore | None = None
    _rule: ServerRule = field(init=False)
    _virtual: Virtual = field(init=False)
    _broadcasts: Broadcasts = field(init=False)
    _choice: Choice = field(init=False)
    _cohorts: Cohorts = field(init=False)
    _ends: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        experiment, strategy = self.experiment, self.experiment.strategy
        self._guard = guard(self.prepared)
        self._rule = server_rule(**self._rule_arguments())
        self._body = body(self.prepared.model, self.prepared.dataset, strategy.aggregate_keys)
        self._remembers = bool(
            self._body.first_personal
            or self._rule.remember(self._body.first_shared)
            or strategy.error_feedback
            or experiment.evaluate.clients.keep_best
        )
        self._whole = not self._body.first_personal and self.prepared.dataset.client_shapes is None
        self._virtual = virtual(self.prepared, wire.size(self._body.first_shared))
        codec = downlink_codec(_sections(strategy.downlink), self._rule, self._body.first_shared)
        self._broadcasts = Broadcasts(self.executor, codec, experiment.seed)
        self._choice = how_trained(self.prepared)
        self._cohorts = Cohorts(
            self.executor, strategy.fold_block, num_blocks(self.prepared, self._choice), self._guard.defence is not None
        )

    # -- life cycle ------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """Return sizes and labels of the partition."""
        return {**summarise(self.experiment, self.prepared), **self._guard.summary(), **rule_summary(self.prepared)}

    def initial_state(self) -> RunState:
        """Return the state before the first step: the freshly built model, at virtual time 0."""
        model = self._body.first_shared
        return RunState(0, model, {**self._rule.init(model), SAMPLER: self._virtual.sampler.init()})

    def start(self) -> None:
        """Share the data once and build the workers."""
        experiment, strategy = self.experiment, self.experiment.strategy
        begun = self.prepared.begun
        self.executor.start(
            WorkerSpec(
                "trainers.cohort:CohortWorker",
                {
                    "model": experiment.model_section,
                    "algorithm": self._rule_arguments(),
                    "client": strategy.client.model_dump(),
                    "dataset": self.executor.share(self._guard.dataset),
                    "partition": self.executor.share(self._guard.partition),
                    "seed": experiment.seed,
                    "compression": _sections(strategy.compression),
                    "downlink": _sections(strategy.downlink),
                    "error_feedback": strategy.error_feedback,
                    "aggregate_keys": strategy.aggregate_keys,
                    "begun": None if begun is None else self.executor.share(wire.encode(begun.tree)),
                    "held_out": experiment.evaluate.clients.held_out,
                    "vectorise": self._choice.kind,
                    "stacked": self._guard.defence is not None,
                    "on_failure": strategy.on_failure,
                    "threads": experiment.cluster.threads_per_worker,
                    "device": experiment.cluster.device,
                },
                self.sys_path,
            )
        )

    def steps(self, state: RunState) -> Iterator[StepReport]:
        """Yield one report a step, from `state` to the last round. Evaluates an untrained model first (step 0).

        Raises:
            WorkerError: when a client's code raises, an update is not finite, workers are lost for good, or so many
                clients have stopped for ever that nothing can arrive any more.
        """
        rounds, every = self.experiment.strategy.algorithm.rounds, self.experiment.evaluate_every
        self._in_flight = Counter(ticket.version for ticket in state.clock.tickets)
        yield from stepping(state, rounds, every, self._step, self._evaluate, lambda: self._ends)

    def finish_early(self) -> None:
        """End after the step that was yielded last; every state is whole."""
        self._ends = True

    # -- one step --------------------------------------------------------------------------------------------

    def _step(self, state: RunState) -> Step:
        began = time.perf_counter()
        assert state.model is not None
        state = self._with_fresh_losses(state)
        plan = self._plan(state)
        arrivals = sorted(plan.arrivals, key=lambda ticket: (ticket.client, ticket.order))
        released = {**state.versions, state.step: self._release(state)}
        works = self._works(arrivals, state.step)
        works += [Work(client, state.step, state=kept) for client, kept in self._extra_states()]
        wire_s = -time.perf_counter()
        broadcasts = {
            version: self._broadcasts.get(version, released[version])
            for version in sorted({work.version for work in works})
        }
        wire_s += time.perf_counter()
        outcome = yield from self._cohorts.train(
            works,
            {version: handle for version, (handle, _) in broadcasts.items()},
            f"round {state.step + 1}",
        )
        outcome = outcome._replace(reports=tuple(r for r in outcome.reports if r.client != self._guard.root))
        folded, kept, figures = self._combined(outcome.gathered, state)
        server = {slot: tree for slot, tree in state.server.items() if slot not in (SAMPLER, *SLOTS)}
        server, model = self._rule.step(server, state.model, folded)
        memory = self._virtual.sampler.learn(_learned(state), _feedback(arrivals, outcome.reports), state.step)
        in_flight = self._in_flight_after(plan, state.step)
        live = {version for version, count in in_flight.items() if count}
        after = replace(
            state, step=state.step + 1, model=model, server={**server, **kept, SAMPLER: memory}, clock=plan.clock,
            versions={version: tree for version, tree in released.items() if version in live},
        )  # fmt: skip
        if outcome.states:
            self._client_store().write(outcome.states)
        self._in_flight = in_flight
        downlink_bytes = 0
        if plan.started:
            downlink_bytes = plan.started * self._broadcasts.num_bytes(state.step, released[state.step])
        self._broadcasts.keep(live)
        values = {**_figures(plan, outcome, state.step), **figures, "comm/downlink_bytes": float(downlink_bytes)}
        round_s = time.perf_counter() - began
        values["time/compute_s"], values["time/wire_s"] = outcome.compute_s, outcome.wire_s + wire_s
        values["time/round_s"] = round_s
        busy_s = values["time/compute_s"] + values["time/wire_s"]
        values["time/wait_s"] = max(0.0, round_s * max(1, self.executor.num_workers) - busy_s)
        return StepReport(after, values, outcome.reports)

    def _combined(self, gathered: Fold | Stack, state: RunState) -> Defended:
        """Return the sum of a step's contributions, or what a robust aggregator makes of them."""
        if isinstance(gathered, Fold):
            return Defended(gathered, {}, {})
        assert self._guard.defence is not None
        try:
            return self._guard.defence.combine(gathered, state.server, state.step)
        except ValueError as error:
            raise WorkerError(
                str(error),
                place=f"round {state.step + 1}",
                hint="lower strategy.aggregator.num_byzantine, or raise strategy.algorithm.cohort",
            ) from error

    def _extra_states(self) -> list[tuple[int, pa.Buffer | None]]:
        """Return who takes part in every round beside the population, and what is remembered of each."""
        return list(zip(self._guard.extras, self._states(self._guard.extras), strict=True))

    def _plan(self, state: RunState) -> StepPlan:
        """Ask virtual time who arrives next."""
        pace, population, sampler = self._virtual
        with _starving_in(state.step + 1):
            return plan(pace, population, sampler, _learned(state), state.clock, state.step)

    def _with_fresh_losses(self, state: RunState) -> RunState:
        """Let the sampler learn the present model's losses on its candidates, where it chooses by them."""
        pace, population, sampler = self._virtual
        if not sampler.needs_losses:
            return state
        assert isinstance(pace, Synchronous) and state.model is not None
        memory = _learned(state)
        with _starving_in(state.step + 1):
            clients = shortlist(pace, population, sampler, memory, state.clock, state.step)
        works = self._remembered_works(clients, state.step)
        losses = client_losses(self.executor, works, state.model, state.step, self.experiment.evaluate.batch_size)
        sizes = population.sizes(np.asarray(clients, np.int64))
        feedback = [
            Feedback(client, losses[client], int(size), 0.0) for client, size in zip(clients, sizes, strict=True)
        ]
        return replace(state, server={**state.server, SAMPLER: sampler.learn(memory, feedback, state.step)})

    def _release(self, state: RunState) -> Tree:
        """Return what clients pull: the model, and what the rule sends beside it."""
        assert state.model is not None
        return release(state.model, self._rule.send(state.server))

    def _works(self, arrivals: Sequence[Ticket], step: int) -> list[Work]:
        states = self._states([ticket.client for ticket in arrivals])
        return [
            Work(t.client, t.version, t.repeat, t.num_steps, step - t.version, state)
            for t, state in zip(arrivals, states, strict=True)
        ]

    def _remembered_works(self, clients: Sequence[int], step: int) -> list[Work]:
        states = self._states(clients)
        return [Work(client, step, state=state) for client, state in zip(clients, states, strict=True)]

    def _states(self, clients: Sequence[int]) -> Sequence[pa.Buffer | None]:
        return self._client_store().read(clients) if self._remembers else [None] * len(clients)

    def _client_store(self) -> ClientStore:
        assert self.clients is not None, "a run's life gives its engine a store before it starts"
        return self.clients

    def _in_flight_after(self, plan: StepPlan, step: int) -> Counter[int]:
        """Return how many participations of each version are under way after a plan, at the cost of the plan."""
        after = Counter(self._in_flight)
        after[step] += plan.started
        for tickets in (plan.arrivals, plan.late, plan.dropped, plan.stale):
            after.subtract(ticket.version for ticket in tickets)
        return +after

    # -- evaluation ------------------------------------------------------------------------------------------

    def _evaluate(self, state: RunState) -> dict[str, float]:
        """Return the figures of the global model, where there is one, and of clients' own, where they are asked for."""
        assert state.model is not None
        settings, values = self.experiment.evaluate, {}
        if self._whole:
            num_examples = len(self.prepared.dataset.test_x)
            values |= evaluate(self.executor, state.model, state.step, range(num_examples), settings.batch_size)
            probe = range(num_examples, len(self._guard.dataset.test_x))
            if probe:
                success = evaluate(self.executor, state.model, state.step, probe, settings.batch_size)
                values["attack/success"] = success["test/accuracy"]
        if settings.clients.held_out:
            num_clients = self._virtual.population.num_clients
            size = settings.clients.sample
            count = num_clients if size == "all" else min(size, num_clients)
            clients = uniform(num_clients, count, generator(self.experiment.seed, "evaluated clients", state.step))
            works = self._remembered_works(clients, state.step)
            personal = evaluate_clients(
                self.executor, works, state.model, state.step, settings.batch_size, keep_best=settings.clients.keep_best
            )
            if personal.states:
                self._client_store().write(personal.states)
            values |= personal.values
        return values

    # -- what the experiment says ------------------------------------------------------------------------------

    def _rule_arguments(self) -> dict[str, Any]:
        algorithm = self.experiment.strategy.algorithm
        assert self.prepared.partition is not None
        return {
            "name": algorithm.name,
            "num_clients": self.prepared.partition.num_clients,
            **algorithm.arguments(),
        }


@contextmanager
def _starving_in(round_: int) -> Iterator[None]:
    """Say in a user's words that nobody can come any more."""
    try:
        yield
    except Starved as error:
        raise WorkerError(
            str(error),
            place=f"round {round_}",
            hint="see availability, dropout and stops of strategy.behaviour; what was trained so far is kept",
        ) from error


def _learned(state: RunState) -> Tree:
    """Return what the sampler remembers; a checkpoint has no slot for a sampler that remembers nothing."""
    return state.server.get(SAMPLER, {})


def _sections(codecs: Sequence[Codec]) -> list[dict[str, Any]]:
    return [codec.model_dump() for codec in codecs]


def _feedback(arrivals: Sequence[Ticket], reports: Sequence[ClientReport]) -> list[Feedback]:
    """Return what the sampler is told of the participations that were trained; both come sorted alike."""
    return [
        Feedback(report.client, report.loss, report.num_examples, ticket.finish_s - ticket.start_s)
        for ticket, report in zip(arrivals, reports, strict=False)  # those beside the population come after them
        if not report.failed
    ]


def _figures(plan: StepPlan, outcome: Outcome, step: int) -> dict[str, float]:
    """Return a step's figures beside its times."""
    trained = [report for report in outcome.reports if not report.failed]
    examples = sum(report.num_examples for report in trained)
    return {
        "train/loss": sum(report.loss * report.num_examples for report in trained) / examples,
        "train/num_examples": float(examples),
        "train/num_clients": float(len(trained)),
        "train/num_steps": float(sum(report.num_steps for report in trained)),
        "train/staleness": sum(report.staleness for report in trained) / len(trained),
        "train/num_started": float(plan.started),
        "train/num_lost": float(len(plan.late) + len(plan.dropped) + len(plan.stale)),
        "train/num_late": float(len(plan.late)),
        "train/num_dropped": float(len(plan.dropped)),
        "train/num_stale": float(len(plan.stale)),
        "train/num_failed": float(len(outcome.reports) - len(trained)),
        "comm/uplink_bytes": float(sum(report.uplink_bytes for report in trained)),
    }
