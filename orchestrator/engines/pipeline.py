"""The pipeline engine: a gang of stages that trains by itself, and a driver that listens, records and keeps states.

    launch     every rank gets the settings, the data and the last whole state, and goes
    listen     reports come out of order; a step is yielded when all that belongs to it has come
    lost       a rank's process or node is gone: the gang starts again from the last whole state
    stop       an interruption or a search ends the gang after the step under way, with a whole state

The same states come out of it whatever happens in between, since a step depends on the state before and its number
alone. Without workers all stages take turns in this process.
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
from orchestrator.client_store import ClientStore
from orchestrator.config.schema import Experiment, Pipeline
from orchestrator.engines.base import RunState, StepReport
from orchestrator.errors import WorkerError
from orchestrator.interrupts import Interrupts
from orchestrator.preparing import Prepared
from orchestrator.stages import Stages, settings_of, summarise_stages
from trainers import modules, wire
from trainers.local import NotFinite
from trainers.pipeline.chunk import LayerFailed
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.settings import Settings
from trainers.pipeline.state import merge, whole
from trainers.threads import intra_op_threads

_DIVERGED = "lower strategy.optimizer.lr, or set strategy.clip_norm=1"

BEAT_S = 0.25
"""How long an interruption may wait for the driver to look up from listening."""

PLACES_EVERY_S = 1.0
"""How often room is looked for after a loss, for as long as `cluster.start_timeout_s`."""

DRAIN_S = 60.0
"""How long a gang that was told to stop is listened to without a word from it."""


@dataclass
class _Step:
    """What has come of a step."""

    values: dict[str, float] = field(default_factory=dict)
    told: bool = False
    evaluated: bool = False
    ends: bool = False
    spans: dict[int, list[Any]] = field(default_factory=dict)
    parts: dict[int, Mapping[str, Any]] = field(default_factory=dict)


class PipelineEngine:
    """Runs the steps of a pipeline.

    Args:
        prepared: data and model. stages: how the model is cut. gang: where the ranks run; None for this process.
        interrupts: by which a run is interrupted. notify: told `gang_restarted`, and `gang_recovered` when
            the first step after it is done.
    """

    clients: ClientStore | None = None  # a pipeline has none

    def __init__(
        self, prepared: Prepared, stages: Stages, gang: Gang | None, interrupts: Interrupts, notify: Notify
    ) -> None:
        self._experiment: Experiment = prepared.experiment
        strategy = prepared.experiment.strategy
        assert isinstance(strategy, Pipeline)
        self._strategy = strategy
        self._prepared, self._gang, self._interrupts, self._notify = prepared, gang, interrupts, notify
        self._stages = stages
        self._settings: Settings = settings_of(prepared.experiment, stages)
        self._names = list(dict(modules.everything(prepared.model)))
        self._dataset: Any = None
        self._ends = False
        self._begun = False

    def summary(self) -> dict[str, Any]:
        """Return which layers each stage has, and what a step is expected to take."""
        return summarise_stages(self._experiment, self._stages)

    def initial_state(self) -> RunState:
        """Return the freshly built model, before the first step."""
        counters = {n: t.clone() for n, t in modules.everything(self._prepared.model) if not t.is_floating_point()}
        return RunState(0, modules.snapshot(self._prepared.model), {"counters": counters} if counters else {})

    def start(self) -> None:
        """Share the data once."""
        if self._gang is not None:
            self._dataset = self._gang.share(self._prepared.dataset)

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
        if state.step >= self._strategy.steps:
            return
        if self._gang is None:
            yield from self._here(state)
            return
        restarts, reached = 0, state.step if state.step else -1
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
                if not failure.lost or restarts == self._strategy.restarts or self._ends:
                    raise _worker_error(failure, reached, restarts) from failure
                restarts += 1
                lost_at = time.monotonic()
                fields = {"worker": failure.worker, "reason": failure.reason, "from_step": state.step}
                self._notify("gang_restarted", {**fields, "restart": restarts, "of": self._strategy.restarts})

    # ------------------------------------------------------------------------------------------------- on a gang

    def _attempt(self, gang: Gang, state: RunState) -> Iterator[StepReport]:
        """Run the gang from a state to its end and yield the steps in order."""
        trees = {"model": state.model or {}, **state.server}
        arguments = {
            "settings": self._settings._asdict(),
            "dataset": self._dataset,
            "start": {tree: gang.share(wire.encode(tensors).to_pybytes()) for tree, tensors in trees.items()},
            "begin": state.step,
            "evaluate_every": self._experiment.evaluate_every,
            "evaluate_batch": self._experiment.evaluate.batch_size,
            "checkpoint_every": self._experiment.checkpoint_every,
        }
        pending: dict[int, _Step] = {}
        due = state.step + 1 if state.step else 0
        reports = gang.run("trainers.pipeline.program:run", arguments, beat_s=BEAT_S)
        silent_since = time.monotonic()
        interrupted = False
        try:
            while True:
                try:
                    with self._interrupts.deferred():
                        report = next(reports, False)
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted, report = True, None
                    self.finish_early()
                if report is False:
                    break
                if report is None:
                    if interrupted and time.monotonic() - silent_since > DRAIN_S:
                        break
                    continue
                silent_since = time.monotonic()
                self._take(pending, report.payload)
                while due in pending and self._complete(due, pending[due]):
                    yield self._report(due, pending.pop(due))
                    due += 1
        finally:
            reports.close()
        if interrupted:
            raise KeyboardInterrupt

    def _take(self, pending: dict[int, _Step], payload: Mapping[str, Any]) -> None:
        step = pending.setdefault(payload["step"], _Step())
        if payload["kind"] == "step":
            step.told, step.ends = True, payload["ends"]
            step.values |= _values(payload["loss"], payload["norm"], payload["step_s"], payload["sent_bytes"])
        elif payload["kind"] == "evaluation":
            step.evaluated = True
            step.values |= _scores(payload["loss"], payload["accuracy"], payload["evaluate_s"])
        elif payload["kind"] == "spans":
            step.spans[payload["stage"]] = payload["spans"]
        else:
            step.parts[payload["stage"]] = payload["trees"]

    def _complete(self, number: int, step: _Step) -> bool:
        if number == 0:
            return step.evaluated
        evaluates = step.ends or number % self._experiment.evaluate_every == 0
        saves = step.ends or number % self._experiment.checkpoint_every == 0
        stages = self._settings.stages
        return (
            step.told
            and (not evaluates or (step.evaluated and len(step.spans) == stages))
            and (not saves or len(step.parts) == stages)
        )

    def _report(self, number: int, step: _Step) -> StepReport:
        if step.parts:
            parts = [{tree: wire.decode(data) for tree, data in part.items()} for part in step.parts.values()]
            state = _state(number, merge(parts, self._names))
        else:
            state = self.initial_state() if number == 0 else RunState(number, None, {})
        spans = [step.spans[stage] for stage in sorted(step.spans)]
        return StepReport(state, step.values, (), (("timeline", {"step": number, "stages": spans}),) if spans else ())

    # -------------------------------------------------------------------------------------------- in this process

    def _here(self, state: RunState) -> Iterator[StepReport]:
        """Take turns in this process."""
        cluster, batch = self._experiment.cluster, self._experiment.evaluate.batch_size
        device = torch.device("cuda" if cluster.device == "cuda" else "cpu")
        try:
            with intra_op_threads(cluster.threads_per_worker):
                pipeline = InlinePipeline(self._settings, self._prepared.dataset, device)
                pipeline.restore({"model": state.model or {}, **state.server})
            if state.step == 0:
                yield StepReport(state, self._evaluate_here(pipeline, batch))
            for number in range(state.step + 1, self._strategy.steps + 1):
                began = time.perf_counter()
                with intra_op_threads(cluster.threads_per_worker):
                    result = pipeline.step(number)
                values = _values(result.loss, result.norm, time.perf_counter() - began, result.sent_bytes)
                ends = number == self._strategy.steps
                events: tuple[Any, ...] = ()
                if ends or number % self._experiment.evaluate_every == 0:
                    values |= self._evaluate_here(pipeline, batch)
                    events = (("timeline", {"step": number, "stages": pipeline.spans_since(began)}),)
                yield StepReport(_state(number, whole(pipeline.ranks)), values, (), events)
                if self._ends:
                    return
        except (LayerFailed, NotFinite) as error:
            hint = _DIVERGED if isinstance(error, NotFinite) else "mend the layer's code"
            raise WorkerError(str(error), place="the pipeline", hint=hint) from error

    def _evaluate_here(self, pipeline: InlinePipeline, batch_size: int) -> dict[str, float]:
        began = time.perf_counter()
        with intra_op_threads(self._experiment.cluster.threads_per_worker):
            result = pipeline.evaluate(batch_size)
        return _scores(result.loss, result.accuracy, time.perf_counter() - began)


def _state(number: int, trees: Mapping[str, Mapping[str, torch.Tensor]]) -> RunState:
    return RunState(
        number, dict(trees["model"]), {tree: dict(tensors) for tree, tensors in trees.items() if tree != "model"}
    )


def _values(loss: float, norm: float, step_s: float, sent_bytes: int) -> dict[str, float]:
    values = {"train/loss": loss, "time/step_s": step_s, "comm/boundary_bytes": float(sent_bytes)}
    return values if norm != norm else {**values, "train/gradient_norm": norm}


def _scores(loss: float, accuracy: float, evaluate_s: float) -> dict[str, float]:
    return {"test/loss": loss, "test/accuracy": accuracy, "time/evaluate_s": evaluate_s}


def _worker_error(failure: RemoteFailure, step: int, restarts: int) -> WorkerError:
    """Say a gang's failure in a user's words."""
    if failure.lost:
        hint = f"after {restarts} restarts; the run directory holds the last checkpoint: orchestrator resume RUN_DIR"
    elif "NotFinite" in failure.reason:
        hint = _DIVERGED
    else:
        hint = "mend the code above, then: orchestrator resume RUN_DIR"
    place = f"after step {max(step, 0)}"
    return WorkerError(failure.reason, failure.worker, failure.node, place, failure.remote_traceback, hint)
