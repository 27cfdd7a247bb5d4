"""Tracking a run with MLflow, without ever waiting for MLflow.

`Tracker.log` appends to an outbox in the run directory and returns; a background thread delivers the outbox. A server
that is down, slow or restarted costs nothing but a message: what it has not received is delivered when it is back, when
the run ends, or by a later `orchestrator resume`.

Delivering the same record twice changes nothing, since each metric carries the time at which it was logged:
MLflow's stores keep one row for equal (run, name, step, time, value). So a step shows once after any crash. When
a resumed run trains a step again, what the outbox already has of that step is not logged again.

Left out: reading from MLflow. Reports are made from the run directory alone.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from orchestrator.config.schema import Tracking
from orchestrator.errors import ConfigError
from orchestrator.files import cannot_write
from orchestrator.rundir import RunDirectory
from orchestrator.tracking_courier import Courier, now_ms
from orchestrator.tracking_outbox import Cursor, Outbox, chunks, head
from orchestrator.tracking_server import MAX_PER_BATCH
from orchestrator.tracking_uri import Target, check, resolve

__all__ = ["Tracker", "check", "deliver"]

Status = Literal["FINISHED", "FAILED", "KILLED"]
_FOLDER = "tracking"
_MEASURED_AGAIN = "time/"  # seconds differ each time a step is trained; the first measurement is kept


class Tracker:
    """One run on its way to MLflow. Make it with `open`, and always `finish` it."""

    def __init__(self, outbox: Outbox, courier: Courier, rundir: RunDirectory, key: str, resumed: bool) -> None:
        self._outbox = outbox
        self._courier = courier
        self._rundir = rundir
        self._key = key
        self._earlier: dict[int, dict[str, float]] | None = None if resumed else {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        settings: Tracking,
        rundir: RunDirectory,
        *,
        experiment_name: str,
        run_name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        notify: Callable[[str], None],
    ) -> Tracker:
        """Begin to track a run, or go on with it: then its run on the server is opened again.

        Args:
            experiment_name, run_name, parent_run_id: used when the run is new. The parent may be a run id, or the
                `reference` of the sweep's tracker, which is known before the server has answered.
            params: a parameter that differs from an earlier start of the same run becomes the tag
                `resumed.<name>`, since MLflow parameters cannot change.
            notify: told, also from the background thread, in one line, what the user should know.

        Raises:
            ConfigError: when the URI can never work.
            OrchestratorError: when the run directory cannot be written.
        """
        problems = check(settings)
        if problems:
            raise ConfigError(problems)
        target = resolve(settings, rundir.path, rundir.manifest.get("mlflow"))
        outbox = _outbox(rundir)
        known = head(outbox.lines())
        resumed = bool(known["run"])
        key = known["run"].get("key") or secrets.token_hex(16)
        records: list[dict[str, Any]] = []
        if not resumed:
            names = {"key": key, "experiment": experiment_name, "name": run_name, "parent": parent_run_id}
            records.append({"kind": "run", **names, "time_ms": now_ms()})
        wanted = {name: str(value) for name, value in params.items()}
        new = {name: value for name, value in wanted.items() if name not in known["params"]}
        changed = {
            f"resumed.{name}": value
            for name, value in wanted.items()
            if known["params"].get(name, value) != value or f"resumed.{name}" in known["tags"]
        }
        wanted_tags = {**changed, **{name: str(value) for name, value in tags.items()}}
        new_tags = {name: value for name, value in wanted_tags.items() if known["tags"].get(name) != value}
        records += [{"kind": "params", "values": part} for part in chunks(new, MAX_PER_BATCH)]
        records += [{"kind": "tags", "values": part} for part in chunks(new_tags, MAX_PER_BATCH)]
        if resumed:
            records.append({"kind": "status", "status": "RUNNING", "time_ms": now_ms()})
        else:
            records.append({"kind": "artifact", "path": "config.resolved.yaml"})
            records += _logged_before(rundir)
        try:
            outbox.append(*records)
        except OSError as error:
            outbox.close()
            raise cannot_write(outbox.path, error) from error
        _remember(rundir, target)
        courier = _courier(rundir, outbox, target, notify)
        courier.start()
        return cls(outbox, courier, rundir, key, resumed)

    @property
    def reference(self) -> str:
        """What a child gives as `parent_run_id`; known at once, whether the server answers or not."""
        return f"outbox:{self._key}"

    @property
    def uri(self) -> str:
        """Where metrics go, without a password."""
        return self._courier.target.shown

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the metrics of one step; never blocks on the network and never raises."""
        try:
            new = {name: float(value) for name, value in values.items()}
            with self._lock:
                if self._earlier is None:
                    self._earlier = self._outbox.metrics_from(step)
                earlier = self._earlier.get(step)
                if earlier:
                    new = {name: value for name, value in new.items() if not _known(name, value, earlier)}
            if new:
                self._append({"kind": "metrics", "step": int(step), "time_ms": now_ms(), "values": new})
        except Exception as error:
            self._courier.tell(f"the metrics of step {step} could not be queued for MLflow: {error!r}", once="log")

    def artifact(self, path: Path) -> None:
        """Queue a file for upload; it is read when it is sent, and never raises."""
        absolute, home = Path(path).absolute(), self._rundir.path.absolute()
        inside = absolute.is_relative_to(home)
        self._append({"kind": "artifact", "path": str(absolute.relative_to(home) if inside else absolute)})

    def finish(self, status: Status, timeout_s: float) -> int:
        """Deliver what is left and end the run on the server; never raises.

        Returns:
            The number of records that the server has not taken when the time is up. They stay in the outbox.
        """
        self._append({"kind": "status", "status": status, "time_ms": now_ms()})
        try:
            return _stop(self._courier, self._rundir, timeout_s)
        finally:
            self._outbox.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            self._outbox.append(record)
        except OSError as error:
            self._courier.tell(
                f"{self._outbox.path} cannot be written ({error.strerror}); metrics for MLflow wait in memory",
                once="full",
            )
            return
        self._courier.wake()


def deliver(
    rundir: RunDirectory, settings: Tracking, timeout_s: float, notify: Callable[[str], None] | None = None
) -> int:
    """Deliver what a run that has ended still has in its outbox.

    Returns:
        The number of records that the server has not taken when the time is up.

    Raises:
        ConfigError: when the URI can never work.
    """
    if not (rundir.path / _FOLDER / "outbox.jsonl").exists():
        return 0
    problems = check(settings)
    if problems:
        raise ConfigError(problems)
    target = resolve(settings, rundir.path, rundir.manifest.get("mlflow"))
    outbox = _outbox(rundir)
    try:
        if not head(outbox.lines())["run"]:
            return 0
        courier = _courier(rundir, outbox, target, notify or (lambda text: None))
        if not courier.num_pending():
            return 0
        courier.start()
        return _stop(courier, rundir, timeout_s)
    finally:
        outbox.close()


def _stop(courier: Courier, rundir: RunDirectory, timeout_s: float) -> int:
    pending = courier.stop(timeout_s)
    if pending:
        courier.tell(
            f"MLflow at {courier.target.shown} has not taken {pending} records; they are kept in "
            f"{rundir.path / _FOLDER}. When it is back, type: orchestrator resume {rundir.path}",
            late=True,
        )
    return pending


def _outbox(rundir: RunDirectory) -> Outbox:
    try:
        return Outbox(rundir.path / _FOLDER)
    except OSError as error:
        raise cannot_write(rundir.path / _FOLDER, error) from error


def _courier(rundir: RunDirectory, outbox: Outbox, target: Target, notify: Callable[[str], None]) -> Courier:
    cursor = Cursor.load(outbox.path.parent, target.identity, outbox.size_bytes())
    return Courier(outbox, cursor, target, rundir, notify)


def _remember(rundir: RunDirectory, target: Target) -> None:
    """Write into the manifest where metrics go, before the server has answered."""
    recorded = rundir.manifest.get("mlflow") or {}
    if any(recorded.get(name) != value for name, value in target.record().items()):
        rundir.update_manifest(mlflow=target.record())


def _logged_before(rundir: RunDirectory) -> list[dict[str, Any]]:
    """Return the metrics of a run that was not tracked until now, as `resume tracking.enabled=true` makes it."""
    steps: dict[int, dict[str, Any]] = {}
    for event in rundir.events():
        if event["kind"] == "metrics":
            empty = {"kind": "metrics", "step": event["step"], "time_ms": int(event["time"] * 1000), "values": {}}
            steps.setdefault(event["step"], empty)["values"].update(event["values"])
        elif event["kind"] == "metrics_truncated":
            steps = {step: record for step, record in steps.items() if step <= event["step"]}
    return [steps[step] for step in sorted(steps)]


def _known(name: str, value: float, earlier: Mapping[str, float]) -> bool:
    """Return whether a step's value is in the outbox already, from before a resume."""
    if name not in earlier:
        return False
    before = earlier[name]
    return name.startswith(_MEASURED_AGAIN) or before == value or (before != before and value != value)
