"""The gang engine: ranks that train by themselves, and a driver that listens, records and keeps states.

    launch     every rank gets the settings, the data and the last whole state, and goes
    listen     reports come out of order; a step is yielded when all that belongs to it has come
    lost       a rank's process or node is gone: the gang starts again from the last whole state
    shards     where ranks write their parts of a state by themselves, they tell what they wrote (`Course.writes`)
    stop       an interruption or a search ends the gang after the step under way, with a whole state

The same states come out of it whatever happens in between, since a step depends on the state before and its number
alone. Without workers all ranks take turns in this process, where a state is copied when somebody wants it whole. What
a strategy adds is a `Course`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cluster.errors import PlacementFailed, RemoteFailure
from cluster.executor import Notify
from cluster.gang import Gang
from orchestrator.checkpoints import CheckpointStore
from orchestrator.client_store import ClientStore
from orchestrator.config.schema import Experiment, GangSection
from orchestrator.engines.base import RunState, ShardSet, StepReport
from orchestrator.engines.course import Course, Inline
from orchestrator.errors import WorkerError
from orchestrator.interrupts import Interrupts
from orchestrator.preparing import Prepared
from orchestrator.shard_sets import assembled
from trainers import modules, wire
from trainers.local import NotFinite
from trainers.loop import Spans
from trainers.pipeline.chunk import LayerFailed
from trainers.pipeline.state import merge
from trainers.threads import intra_op_threads

_DIVERGED = "lower strategy.optimizer.lr"
_CLIP = ", or set strategy.clip_norm=1"

BEAT_S = 0.25
"""How long an interruption may wait for the driver to look up from listening."""

PLACES_EVERY_S = 1.0
"""How often room is looked for after a loss, for as long as `cluster.start_timeout_s`."""

DRAIN_S = 60.0
"""How long a gang that was told to stop is listened to without a word from it."""


@dataclass
class PendingStep:
    """What has come of a step."""

    values: dict[str, float] = field(default_factory=dict)
    told: bool = False
    measured: set[int] = field(default_factory=set)
    ends: bool = False
    spans: dict[int, Spans] = field(default_factory=dict)
    parts: dict[int, Mapping[str, Any]] = field(default_factory=dict)


class GangEngine:
    """Runs the steps of a gang.

    Args:
        prepared: data and model. course: what ranks do. gang: where they run; None for this process.
        interrupts: by which a run is interrupted. notify: told `gang_restarted`, and `gang_recovered` when
            the first step after it is done.
    """

    clients: ClientStore | None = None  # a gang has none
    store: CheckpointStore | None = None

    def __init__(
        self, prepared: Prepared, course: Course, gang: Gang | None, interrupts: Interrupts, notify: Notify
    ) -> None:
        self._experiment: Experiment = prepared.experiment
        strategy = prepared.experiment.strategy
        assert isinstance(strategy, GangSection)
        self._strategy = strategy
        self._prepared, self._gang, self._interrupts, self._notify = prepared, gang, interrupts, notify
        self._course = course
        self._names = list(dict(modules.everything(prepared.model)))
        self._arguments: Mapping[str, Any] = {}
        self._ends, self._restarts = False, 0
        self._reached: int | None = None  # in this process: the last step, None in the middle of one
        self._word: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return who does what, and what it is expected to take."""
        return self._course.summary()

    def initial_state(self) -> RunState:
        """Return the freshly built model, before the first step."""
        model = self._prepared.model
        if any(tensor.is_meta for _, tensor in modules.everything(model)):  # ranks build it, each its part
            begun = self._prepared.begun
            return RunState(0, None if begun is None else dict(begun.tree), {})
        counters = {n: t.clone() for n, t in modules.everything(model) if not t.is_floating_point()}
        return RunState(0, modules.snapshot(model), {"counters": counters} if counters else {})

    def start(self) -> None:
        """Share the data once, and mark the folder that ranks are to write to."""
        if self._gang is not None:
            if self._course.writes:
                assert self.store is not None
                self._word = self.store.mark()
            self._arguments = self._course.arguments(self._gang)

    def finish_early(self) -> None:
        """End the gang after the step under way."""
        self._ends = True
        if self._gang is not None:
            self._gang.tell("stop")

    def steps(self, state: RunState) -> Iterator[StepReport]:
        """Yield one report a step, from `state` to the last step; a fresh model is evaluated first (step 0).

        States are whole at checkpoints and at the end.

        Raises:
            WorkerError: when a layer raises, the loss is not finite, or ranks are lost more often than allowed.
        """
        if state.step >= self._strategy.num_steps:
            return
        if self._gang is None:
            yield from self._here(state)
            return
        reached = state.step if state.step else -1
        lost_at: float | None = None
        while True:
            try:
                for report in self._attempt(self._gang, state):
                    if lost_at is not None:
                        self._notify("gang_recovered", {"seconds": round(time.monotonic() - lost_at, 1)})
                        lost_at = None
                    if report.state.whole:
                        state = report.state
                    if report.state.step > reached:
                        reached = report.state.step
                        yield report
                return
            except PlacementFailed:  # a node is gone; another may come
                if lost_at is None or time.monotonic() - lost_at > self._experiment.cluster.start_timeout_s:
                    raise
                time.sleep(PLACES_EVERY_S)
            except RemoteFailure as failure:
                if not failure.lost or self._restarts == self._strategy.restarts or self._ends:
                    raise self._worker_error(failure, reached) from failure
                self._restarts += 1
                lost_at = time.monotonic()
                fields = {"worker": failure.worker, "reason": failure.reason, "from_step": state.step}
                self._notify("gang_restarted", {**fields, "restart": self._restarts, "of": self._strategy.restarts})

    # ------------------------------------------------------------------------------------------------- on a gang

    def _attempt(self, gang: Gang, state: RunState) -> Iterator[StepReport]:
        """Run the gang from a state to its end and yield the steps in order."""
        arguments = self._from(gang, state)
        pending: dict[int, PendingStep] = {}
        due = state.step + 1 if state.step else 0
        reports = gang.run(self._course.program, arguments, beat_s=BEAT_S)
        silent_since = time.monotonic()
        interrupted = False
        try:
            while True:
                report: Any = None
                done: list[StepReport] = []
                try:
                    with self._interrupts.deferred():
                        report = next(reports, False)
                        if report:
                            silent_since = time.monotonic()
                            self._take(pending, report)
                        while due in pending and self._complete(due, pending[due]):
                            done.append(self._report(due, pending.pop(due)))
                            due += 1
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    self.finish_early()
                yield from done
                if report is False or (interrupted and time.monotonic() - silent_since > DRAIN_S):
                    break
        finally:
            reports.close()
        if interrupted:
            raise KeyboardInterrupt

    def _from(self, gang: Gang, state: RunState) -> dict[str, Any]:
        """Return the program's arguments for ranks that begin with a state."""
        arguments = {
            **self._arguments,
            "start": self._start(gang, state),
            "begin": state.step,
            "evaluate_every": self._experiment.evaluate_every,
            "checkpoint_every": self._experiment.checkpoint_every,
        }
        if self._course.writes:
            assert self.store is not None
            arguments |= {"folder": self.store.place(), "word": self._word}
        return arguments

    def _start(self, gang: Gang, state: RunState) -> dict[str, Any]:
        """Return what ranks begin with: files that they wrote, trees as Arrow bytes, or nothing but the seed."""
        if state.shards is not None and self._course.writes:
            return {"folder": state.shards.folder, "files": [dict(file) for file in state.shards.files]}
        state = assembled(state)
        trees = {**({"model": state.model} if state.model is not None else {}), **state.server}
        return {tree: gang.share(wire.encode(tensors).to_pybytes()) for tree, tensors in trees.items()}

    def _take(self, pending: dict[int, PendingStep], report: Any) -> None:
        payload = report.payload
        if payload["kind"] == "asks":  # for the word that is the answer
            return
        step = pending.setdefault(payload["step"], PendingStep())
        if payload["kind"] == "step":
            step.told, step.ends = True, step.ends or payload["ends"]
            step.values |= payload["values"]
        elif payload["kind"] == "evaluation":
            step.measured.add(report.rank)
            step.ends = step.ends or payload["ends"]
            step.values |= payload["values"]
        elif payload["kind"] == "spans":
            step.spans[payload["part"]] = payload["spans"]
        else:
            step.parts[payload["part"]] = payload["file"] if "file" in payload else payload["trees"]

    def _complete(self, number: int, step: PendingStep) -> bool:
        measured = len(step.measured) == self._course.num_measuring
        if number == 0:
            return measured
        evaluates = step.ends or number % self._experiment.evaluate_every == 0
        if not step.told or (evaluates and not (measured and len(step.spans) == self._course.num_drawn)):
            return False
        saves = step.ends or number % self._experiment.checkpoint_every == 0
        return not saves or len(step.parts) == self._course.num_savers

    def _report(self, number: int, step: PendingStep) -> StepReport:
        if step.parts and self._course.writes:
            assert self.store is not None
            files = tuple(step.parts[part] for part in sorted(step.parts))
            state = RunState(number, None, {}, shards=ShardSet(self.store.place(number), files))
        elif step.parts:
            parts = list(map(wire.decode_trees, step.parts.values()))
            state = _state(number, merge(parts, self._names))
        else:
            state = self.initial_state() if number == 0 else RunState(number, None, {})
        spans = [step.spans[part] for part in sorted(step.spans)]
        return StepReport(state, step.values, (), (("timeline", {"step": number, "stages": spans}),) if spans else ())

    # -------------------------------------------------------------------------------------------- in this process

    def _here(self, state: RunState) -> Iterator[StepReport]:
        """Take turns in this process."""
        cluster = self._experiment.cluster
        device = torch.device("cuda" if cluster.device == "cuda" else "cpu")
        try:
            with intra_op_threads(cluster.threads_per_worker):
                ranks = self._course.inline(device)
                if state.whole:
                    state = assembled(state)
                    ranks.restore({"model": state.model or {}, **state.server})
            if state.step == 0:
                yield StepReport(state, self._evaluate_here(ranks, 0))
            for number in range(state.step + 1, self._strategy.num_steps + 1):
                if ranks.ends:
                    return
                self._reached = None
                report: StepReport | None = None
                try:
                    with self._interrupts.deferred():
                        report = self._step_here(ranks, number)
                except KeyboardInterrupt:  # that has waited for the end of the step, unless it was a second one
                    if report is not None:
                        yield report
                    raise
                yield report
                if self._ends:
                    return
        except (LayerFailed, NotFinite) as error:
            hint = self._diverged if isinstance(error, NotFinite) else "mend the layer's code"
            raise WorkerError(str(error), place=self._course.place, hint=hint) from error

    def _step_here(self, ranks: Inline, number: int) -> StepReport:
        began = time.perf_counter()
        with intra_op_threads(self._experiment.cluster.threads_per_worker):
            values = {**ranks.step(number), "time/step_s": time.perf_counter() - began}
        events: tuple[Any, ...] = ()
        last = number == self._strategy.num_steps
        if last or number % self._experiment.evaluate_every == 0:
            values |= self._evaluate_here(ranks, number)
            events = (("timeline", {"step": number, "stages": ranks.spans_since(began)}),)
        self._reached = number

        def export() -> RunState | None:
            return _state(number, ranks.export()) if self._reached == number else None

        saves = last or ranks.ends or self._ends or number % self._experiment.checkpoint_every == 0
        return StepReport((saves and export()) or RunState(number, None, {}), values, (), events, export)

    def _evaluate_here(self, ranks: Inline, number: int) -> dict[str, float]:
        began = time.perf_counter()
        with intra_op_threads(self._experiment.cluster.threads_per_worker):
            values = ranks.evaluate(number)
        return {**values, "time/evaluate_s": time.perf_counter() - began}

    # ------------------------------------------------------------------------------------------------- failures

    @property
    def _diverged(self) -> str:
        """What to do when training diverges."""
        return _DIVERGED + (_CLIP if hasattr(self._strategy, "clip_norm") else "")

    def _worker_error(self, failure: RemoteFailure, step: int) -> WorkerError:
        """Say a gang's failure in a user's words."""
        if failure.lost:
            hint = f"after {self._restarts} restarts; the run directory holds the last checkpoint: "
            hint += "orchestrator resume RUN_DIR"
        elif "NotFinite" in failure.reason:
            hint = self._diverged
        elif failure.reason.startswith(("NotShared", "Unsuitable")):
            hint = "change the experiment file accordingly, and run it again"
        else:
            hint = "mend the code above, then: orchestrator resume RUN_DIR"
        place = f"after step {max(step, 0)}"
        return WorkerError(failure.reason, failure.worker, failure.node, place, failure.remote_traceback, hint)


def _state(number: int, trees: Mapping[str, Mapping[str, torch.Tensor]]) -> RunState:
    return RunState(
        number, dict(trees["model"]), {tree: dict(tensors) for tree, tensors in trees.items() if tree != "model"}
    )
