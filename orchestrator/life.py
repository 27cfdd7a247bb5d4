"""One process's part in a run: the loop over steps, what is recorded of each, and how it ends.

`orchestrator.run` prepares and places; from the moment a run directory exists, `Life` is responsible for it:
whatever happens ends in a status, FINISHED, FAILED or KILLED, with a report and whatever state was reached.
"""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints import CheckpointStore
from orchestrator.client_store import ClientStore
from orchestrator.config.schema import Experiment
from orchestrator.engines.base import Engine, RunState, StepReport
from orchestrator.errors import OrchestratorError, WorkerError
from orchestrator.executors import describe
from orchestrator.interrupts import Interrupts
from orchestrator.progress import Progress
from orchestrator.results import RunResult, checkpoint_store, final_weights
from orchestrator.rundir import RunDirectory
from orchestrator.shard_sets import assembled

if TYPE_CHECKING:
    from orchestrator.tracking import Tracker


MANIFEST_EVERY_S = 0.5
"""Longest time that the manifest of a run lags behind its steps; to write it takes as long as a small round."""


_TOLD = (
    *("worker_lost", "worker_replaced", "gang_restarted", "gang_recovered"),
    *("rank_restarted", "rank_recovered", "joined_job"),
)
"""Events that are told on the terminal, too."""


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted after saving its state; its directory can be resumed."""

    def __init__(self, run_dir: Path, step: int, unit: str = "round") -> None:
        super().__init__(run_dir, step, unit)
        self.run_dir, self.step, self.unit = run_dir, step, unit

    def __str__(self) -> str:
        return f"interrupted after {self.unit} {self.step}; go on with: orchestrator resume {self.run_dir}"


@dataclass(frozen=True)
class Trial:
    """What a sweep adds to a run: where it lives, whose child it is, and who is told of each step.

    Args:
        path: the run directory to create. number, params: which trial, with what values.
        parent_run_id: the sweep's MLflow run. on_step: called with each report; True ends the run.
        start_from: a checkpoint folder to begin at (population-based training).
    """

    path: Path
    number: int
    params: Mapping[str, Any]
    parent_run_id: str | None = None
    on_step: Callable[[StepReport, RunDirectory], bool] | None = None
    start_from: Path | str | None = None


@dataclass
class Life:
    """One process's part in a run: the loop, and how it ends."""

    experiment: Experiment
    progress: Progress
    interrupts: Interrupts
    trial: Trial | None
    directory: RunDirectory | None = None
    early: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    latest: RunState | None = None
    report: StepReport | None = None
    clients: ClientStore | None = None
    saved_step: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    def notify(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Record what the executor tells; before the directory exists it is kept until it does."""
        if kind in _TOLD:
            self.progress.message(f"{kind.replace('_', ' ')}: {describe(fields)}", important=True)
        if self.directory is None:
            self.early.append((kind, fields))
        else:
            self.directory.event(kind, **fields)

    def go(self, engine: Engine, state: RunState | None, *, resumed: bool = False) -> RunResult:
        """Train from `state` (None: from the start) to the end, and close the directory whatever happens."""
        directory = self.directory
        assert directory is not None
        with ExitStack() as stack:
            if not resumed:
                stack.enter_context(directory.lock())
            for kind, fields in self.early:
                directory.event(kind, **fields)
            self.progress.message(f"run directory  {directory.path}", important=True)
            tracker = self._open_tracker(directory)
            store = checkpoint_store(self.experiment, directory)
            try:
                state = self._starting_state(engine, store, state, resumed, directory)
                assert self.clients is not None
                stack.callback(self.clients.close)
                engine.clients, engine.store = self.clients, store
                self.progress.begin(state.step)
                engine.start()
                stopped = self._train(engine, store, directory, tracker, state)
            except KeyboardInterrupt:
                self.latest = (self.report and self.report.whole) or self.latest
                with suppress(KeyboardInterrupt):  # a second one, held back until the end was written
                    self._end(directory, tracker, store, "KILLED")
                raise RunInterrupted(directory.path, self.saved_step, self.experiment.strategy.unit) from None
            except BaseException as error:
                with suppress(KeyboardInterrupt):
                    self._end(directory, tracker, store, "FAILED", error)
                raise
            self._end(directory, tracker, store, "FINISHED")
        step = directory.manifest["step"]
        status, unit = "STOPPED" if stopped else "FINISHED", self.experiment.strategy.unit
        return RunResult(directory.path, status, step, dict(self.metrics), unit)

    def _starting_state(
        self,
        engine: Engine,
        store: CheckpointStore,
        state: RunState | None,
        resumed: bool,
        directory: RunDirectory,
    ) -> RunState:
        store.probe()
        source = store
        if state is None and self.trial is not None and self.trial.start_from is not None:
            folder, _, name = str(self.trial.start_from).rpartition("/")
            source = CheckpointStore(folder, keep=1)
            state = assembled(source.load(int(name.removeprefix("step-"))))  # whose files may go at any time
        self.clients = store.client_store(directory.path, state.step if state is not None else None, source)
        if resumed:
            begin = state.step if state is not None else -1
            directory.truncate_metrics(begin)
            directory.event("resumed", from_step=max(begin, 0))
            history = [*directory.manifest.get("resumed", []), {"from_step": max(begin, 0), "pid": os.getpid()}]
            directory.update_manifest(status="RUNNING", resumed=history, error={})
            self.progress.message(f"resuming after {self.experiment.strategy.unit} {max(begin, 0)}")
        if state is not None:
            self.saved_step = state.step
        return state if state is not None else engine.initial_state()

    def _train(
        self,
        engine: Engine,
        store: CheckpointStore,
        directory: RunDirectory,
        tracker: Tracker | None,
        state: RunState,
    ) -> bool:
        """Run the steps; return whether a search ended them early."""
        every, last = self.experiment.checkpoint_every, self.experiment.strategy.num_steps
        began = time.monotonic() - _wall_s(directory)
        self.latest = state
        stop, told, interrupted = False, 0.0, False
        for report in engine.steps(state):
            recorded = False
            try:
                with self.interrupts.deferred():
                    self.report, state = report, report.state
                    self.step = state.step
                    if state.whole:
                        self.latest = state
                        if self.clients is not None:
                            self.clients.commit()
                    self._record(directory, tracker, report, time.monotonic() - began)
                    if not stop and self.trial and self.trial.on_step and self.trial.on_step(report, directory):
                        stop, state = True, report.whole or state
                        engine.finish_early()
                    due = (state.step and state.step % every == 0) or state.step == last or stop
                    if state.whole and due:
                        self._checkpoint(directory, store, state)
                    if due or time.monotonic() - told >= MANIFEST_EVERY_S:
                        directory.update_manifest(step=state.step, metrics=dict(self.metrics))
                        told = time.monotonic()
                    recorded = True
            except KeyboardInterrupt:
                if interrupted or not recorded or report.whole is not None:
                    raise
                interrupted = True  # the state is with the ranks: they end with a whole one
                engine.finish_early()
            if stop and state.whole:
                return True
        if interrupted:
            raise KeyboardInterrupt
        return False

    def _record(self, directory: RunDirectory, tracker: Tracker | None, report: StepReport, wall_s: float) -> None:
        step, now_s = report.state.step, report.state.now_s
        if report.clients:
            told: dict[str, Any] = {"clients": [client.client for client in report.clients]}
            staleness = [client.staleness for client in report.clients]
            if any(staleness):
                told["staleness"] = staleness  # in the order of the clients; left out where nobody was late
            directory.event("round", step=step, virtual_s=now_s, **told)
        for client in report.clients:
            if client.failed:
                directory.event("client_dropped", step=step, client=client.client, reason=client.failed)
                self.progress.message(f"round {step}: client {client.client} dropped: {client.failed}", important=True)
        for kind, fields in report.events:
            directory.event(kind, **fields)
        directory.log(step, wall_s, now_s, report.values)
        if tracker is not None:
            tracker.log(step, report.values)
        self.metrics.update(report.values)
        self.progress.step(step, report.values, now_s)

    def _checkpoint(self, directory: RunDirectory, store: CheckpointStore, state: RunState) -> None:
        info = store.save(state, self.clients)
        self.saved_step = state.step
        directory.event("checkpoint", step=info.step, path=info.path, num_bytes=info.num_bytes)
        directory.flush_metrics()

    def _open_tracker(self, directory: RunDirectory) -> Tracker | None:
        if not self.experiment.tracking.enabled:
            return None
        from orchestrator.tracking import Tracker

        return Tracker.open(
            self.experiment.tracking,
            directory,
            experiment_name=self.experiment.tracking.experiment or self.experiment.name,
            run_name=directory.manifest["id"],
            params=flat(self.experiment.model_dump(exclude={"search"})),
            tags=tags_of(directory.manifest),
            parent_run_id=self.trial.parent_run_id if self.trial else None,
            notify=lambda text: self.progress.message(text, important=True),
        )

    def _end(
        self,
        directory: RunDirectory,
        tracker: Tracker | None,
        store: CheckpointStore,
        status: str,
        error: BaseException | None = None,
    ) -> None:
        """Close the directory: state, metrics, status, report, tracking. A second signal may cut this short."""
        try:
            with self.interrupts.deferred():
                latest = self.latest
                if status != "FAILED" and latest is not None and latest.step > self.saved_step:  # patience may end it
                    self._checkpoint(directory, store, latest)
                directory.flush_metrics()
                fields: dict[str, Any] = {"status": status}
                if self.metrics:
                    # Of a run that was killed, the last state that could be saved; a search may have cut a step short.
                    step = latest.step if status == "KILLED" and latest is not None else self.step
                    fields |= {"step": step, "metrics": dict(self.metrics)}
                if error is not None:
                    ours = isinstance(error, OrchestratorError)
                    text = str(error) if ours else "".join(traceback.format_exception(error))
                    fields["error"] = {"type": type(error).__name__, "message": text, **_where(error)}
                    directory.event("failed", error=fields["error"])
                directory.event("interrupted" if status == "KILLED" else "run_finished", status=status)
                directory.update_manifest(**fields)
                report = report_or_say(directory, self.progress)
                if tracker is not None:
                    for path in (directory.path / "config.resolved.yaml", report, *final_weights(store, directory)):
                        if path is not None:
                            tracker.artifact(path)
        finally:
            if tracker is not None:
                tracker.finish(status, self.experiment.tracking.flush_timeout_s)


def _where(error: BaseException) -> dict[str, str]:
    """Return what a worker's failure knows besides its text, which then is the message alone."""
    if not isinstance(error, WorkerError):
        return {}
    fields = ("message", "place", "worker", "node", "hint", "remote_traceback")
    return {name: value for name in fields if (value := getattr(error, name))}


def report_or_say(directory: RunDirectory, progress: Progress) -> Path | None:
    """Write the report; a report that cannot be drawn must not take a trained model's run down with it."""
    from orchestrator.report import write_report

    try:
        return write_report(directory.path)
    except Exception as error:
        (directory.path / "logs").mkdir(exist_ok=True)
        (directory.path / "logs" / "report-error.txt").write_text(traceback.format_exc())
        progress.message(f"the report could not be written ({error}); see logs/report-error.txt", important=True)
        return None


def _wall_s(directory: RunDirectory) -> float:
    """Seconds the run has taken so far, in earlier processes."""
    column = directory.metrics().column("wall_s")
    return max(column.to_pylist(), default=0.0)


def tags_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    tags = {f"versions.{name}": str(version) for name, version in manifest.get("versions", {}).items()}
    commit = (manifest.get("git") or {}).get("commit")
    if commit:
        tags["mlflow.source.git.commit"] = commit
    return tags


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested mapping as `dotted.name -> text`, as tracking servers want parameters."""
    found: dict[str, str] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: str(value)})
    return found
