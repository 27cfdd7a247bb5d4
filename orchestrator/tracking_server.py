"""The only code that calls MLflow: one run on one server, with short time-outs, in silence.

Everything may raise, and is meant to: `tracking_courier.py` decides what a failure means. Two failures have names,
`Gone` (the run is no longer on the server) and `Refused` (the server will never take this value); every other
exception is an outage.

MLflow is imported in here only, with its telemetry off. No environment variable outlives a call: time-outs are set
as MLflow's defaults, so that what a user has put into `MLFLOW_HTTP_REQUEST_TIMEOUT` and its kin still wins.
"""

from __future__ import annotations

import glob
import importlib
import logging
import os
import re
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.files import sync_folder
from orchestrator.tracking_uri import Target

if TYPE_CHECKING:
    from mlflow import MlflowClient

THREAD_NAME = "orchestrator-tracking"
KEY_TAG = "orchestrator.outbox"  # finds a run again that was created while the answer got lost
CALL_TIMEOUT_S = 10
UPLOAD_TIMEOUT_S = 60
DATABASE_LOCK_TIMEOUT_S = 60
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
MAX_KEY_CHARS = 250
MAX_PER_BATCH = 100  # MLflow takes 100 parameters or tags, and 1000 metrics, in one request
_SOURCES = ("mlflow", "alembic", "sqlalchemy", "huey", "urllib3", "git")


class Gone(Exception):
    """The run was removed from the server, or the server's database is another one."""


class Refused(Exception):
    """The server will not take this, now or later."""


class Entry(NamedTuple):
    """One value: a metric at a step and time, a parameter or a tag."""

    kind: str
    name: str
    value: Any
    step: int = 0
    time_ms: int = 0


def entries(record: Mapping[str, Any]) -> list[Entry]:
    """Return the values in one record of the outbox."""
    if record["kind"] == "metrics":
        at = record["step"], record["time_ms"]
        return [Entry("metric", clean_key(name), float(value), *at) for name, value in record["values"].items()]
    kind, limit = ("param", MAX_PARAM_CHARS) if record["kind"] == "params" else ("tag", MAX_TAG_CHARS)
    return [Entry(kind, clean_key(name), shorten(str(value), limit)) for name, value in record["values"].items()]


def shorten(text: str, limit: int) -> str:
    """Cut a text that is too long for MLflow; the resolved configuration has it whole."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_key(name: str) -> str:
    """Return a name as MLflow allows it."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:MAX_KEY_CHARS]


class Server:
    """A client of one MLflow server or database."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._client: MlflowClient | None = None

    def exists(self, run_id: str) -> bool:
        """Return whether a run is there and was not deleted."""
        from mlflow.exceptions import MlflowException

        with self._calling() as client:
            try:
                return bool(client.get_run(run_id).info.lifecycle_stage == "active")
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def find_or_create(self, head: Mapping[str, Any]) -> tuple[str, str]:
        """Return experiment and run id for an outbox's `run` record; twice the same for the same record."""
        with self._calling() as client:
            experiment_id = self._experiment(client, head["experiment"])
            run_id = self._find(client, experiment_id, head["key"])
            if run_id is None:
                tags = {KEY_TAG: head["key"]}
                created = client.create_run(experiment_id, head["time_ms"], tags, head["name"])
                run_id = created.info.run_id
            return experiment_id, run_id

    def tie_to_parent(self, experiment_id: str, run_id: str, parent: str) -> bool:
        """Make a run the child of another; False when that one is not on the server yet.

        Args:
            parent: a run id, or `outbox:` and the key of the parent's outbox.
        """
        with self._calling() as client:
            parent_id: str | None = parent
            if parent.startswith("outbox:"):
                parent_id = self._find(client, experiment_id, parent.removeprefix("outbox:"))
            if parent_id is None:
                return False
            client.set_tag(run_id, "mlflow.parentRunId", parent_id)
            return True

    def send(self, run_id: str, values: Sequence[Entry]) -> None:
        """Deliver values in as few requests as MLflow allows.

        Raises:
            Gone: the run is not there any more. Refused: at least one of the values is not acceptable.
        """
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        with self._calling() as client:
            metrics = [Metric(v.name, v.value, v.time_ms, v.step) for v in values if v.kind == "metric"]
            params = [Param(v.name, v.value) for v in values if v.kind == "param"]
            tags = [RunTag(v.name, v.value) for v in values if v.kind == "tag"]
            try:
                client.log_batch(run_id, metrics=metrics, params=params, tags=tags)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise Gone(reason(error)) from error
                if error.error_code == "INVALID_PARAMETER_VALUE":  # also when the run was deleted
                    raise (Refused if self.exists(run_id) else Gone)(reason(error)) from error
                raise

    def upload(self, run_id: str, path: Path) -> None:
        """Deliver a file, replacing one of the same name."""
        with self._calling(UPLOAD_TIMEOUT_S) as client:
            client.log_artifact(run_id, str(path))

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        """Open a run again (RUNNING) or end it (FINISHED, FAILED, KILLED)."""
        with self._calling() as client:
            if status == "RUNNING":
                client.update_run(run_id, status="RUNNING")
            else:
                client.set_terminated(run_id, status, time_ms)

    def _experiment(self, client: MlflowClient, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(name)
        if found is None:
            folder = self.target.artifacts
            location = (folder / re.sub(r"[^\w.-]", "_", name)).as_uri() if folder else None
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except MlflowException as error:  # another run has created it meanwhile
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RuntimeError(
                f"its experiment {name!r} is deleted; type: mlflow experiments restore -x {found.experiment_id}, "
                "or name another as tracking.experiment"
            )
        return str(found.experiment_id)

    @staticmethod
    def _find(client: MlflowClient, experiment_id: str, key: str) -> str | None:
        found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        return str(found[0].info.run_id) if found else None

    @contextmanager
    def _calling(self, timeout_s: int | None = None) -> Iterator[MlflowClient]:
        _import()
        with _defaults(timeout_s or CALL_TIMEOUT_S):
            if self._client is None:
                self._client = self._connect()
            yield self._client

    def _connect(self) -> MlflowClient:
        from mlflow import MlflowClient

        if self.target.database is not None:
            _make_database(self.target.database)
        return MlflowClient(tracking_uri=self.target.uri, registry_uri=self.target.uri)


def _make_database(path: Path) -> None:
    """Make a fresh SQLite database with MLflow's tables: by one process at a time, and whole or not at all.

    MLflow takes seconds for it and commits table by table, so that a process killed meanwhile, or a second one, would
    leave a database that no version of MLflow can open.
    """
    import filelock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{path}.lock")
    try:
        with lock.acquire(timeout=DATABASE_LOCK_TIMEOUT_S):
            for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp*"):
                leftover.unlink()
            if path.exists() and path.stat().st_size:
                return
            building = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
            artifacts = (path.parent / "mlartifacts").as_uri()
            store: Any = SqlAlchemyStore(f"sqlite:///{building}", artifacts)  # type: ignore[no-untyped-call]
            store.engine.dispose()
            building.replace(path)
            sync_folder(path.parent)
    except filelock.Timeout as error:
        raise TimeoutError(f"another process held {lock.lock_file} for {DATABASE_LOCK_TIMEOUT_S} s") from error


def reason(error: BaseException) -> str:
    """Return in one short line why a call failed: the operating system's word when it has one."""
    text, current, seen = "", error, set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if type(current).__name__ in ("ReadTimeout", "ConnectTimeout", "ReadTimeoutError"):
            return "no answer in time"
        if isinstance(current, OSError) and isinstance(current.errno, int) and current.strerror:
            text = current.strerror
        elif isinstance(current, ConnectionError):  # the server hung up
            text = str(current)
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    line = " ".join((text or str(error) or type(error).__name__).split()).partition(" [SQL:")[0]
    return shorten(re.sub(r"(?<=://)[^/@\s]*@", "", line), 300)


def is_network(error: BaseException) -> bool:
    """Return whether an error means that nobody answered, rather than that somebody said no."""
    current: BaseException | None = error
    for _ in range(20):
        if current is None:
            return False
        if isinstance(current, ConnectionError | TimeoutError) or "Timeout" in type(current).__name__:
            return True
        if type(current).__name__ in ("NewConnectionError", "NameResolutionError", "MaxRetryError"):
            return True
        current = current.__cause__ or current.__context__
    return False


# ----------------------------------------------------------------------------------- keeping MLflow short and quiet

_importing = threading.Lock()
_defaults_lock = threading.Lock()
_defaults_held: list[dict[Any, Any]] = []


class _Silence(logging.Filter):
    """Drops what MLflow says in our thread; the user is told by us, once, in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.threadName or "").startswith(THREAD_NAME)


_SILENCE = _Silence()


def _import() -> None:
    """Import MLflow with its telemetry off; it asks the environment for that while it is imported, and never again."""
    with _importing:
        if "mlflow.entities" not in sys.modules:
            before = os.environ.get("MLFLOW_DISABLE_TELEMETRY")
            os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
            try:
                importlib.import_module("mlflow.entities")
            finally:
                if before is None:
                    os.environ.pop("MLFLOW_DISABLE_TELEMETRY", None)
                else:
                    os.environ["MLFLOW_DISABLE_TELEMETRY"] = before
        for name in _SOURCES:
            for handler in logging.getLogger(name).handlers:
                handler.addFilter(_SILENCE)  # adding it again changes nothing


@contextmanager
def _defaults(timeout_s: int) -> Iterator[None]:
    """Give MLflow our time-outs and no retries of its own, unless the environment says otherwise."""
    from mlflow import environment_variables as variables

    wanted = {
        variables.MLFLOW_HTTP_REQUEST_TIMEOUT: timeout_s,
        variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES: 0,
        variables.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT: True,
        variables.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR: False,
    }
    with _defaults_lock:
        if not _defaults_held:
            _defaults_held.append({variable: variable.default for variable in wanted})
        else:
            _defaults_held.append({})
        for variable, value in wanted.items():
            variable.default = value
    try:
        yield
    finally:
        with _defaults_lock:
            if len(_defaults_held) == 1:
                for variable, value in _defaults_held[0].items():
                    variable.default = value
            _defaults_held.pop()
