"""A run directory: everything that is known about one run, readable without a server and after any crash.

One process writes (it holds `lock()`), any number may read. `events.jsonl` is the record: one line an event,
appended as things happen, metrics included. `metrics.parquet` holds what a reader would get by replaying those
events, up to a position in `events.jsonl` that its schema metadata names; replaying the rest gives the whole
table, so a killed run loses no metric, and a lost Parquet file can be rebuilt.

Left out: checkpoints (`checkpoints.py`), and the outbox of the tracking server (`tracking.py`).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError, OrchestratorError, Problem, ResumeError
from orchestrator.files import cannot_write, sync_folder, to_json, write_whole

if TYPE_CHECKING:
    import pyarrow

FORMAT = 1
COLUMNS = ("step", "wall_s", "virtual_s", "scope", "name", "value")
_POSITION = b"orchestrator.events_bytes"
_LOCK_WAIT_S = 1.0  # `find_runs` readers hold the lock for an instant when they ask whether it is held


class RunDirectory:
    """One run or sweep on disk. Make it with `create`, `create_at` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = threading.RLock()

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    # ------------------------------------------------------------------------------------- making and opening

    @classmethod
    def create(cls, root: Path, name: str, config_yaml: str, manifest: Mapping[str, Any]) -> RunDirectory:
        """Make `root/<name>-<date>-<time>-<4 hex>`, whole or not at all.

        Args:
            manifest: fields beyond those that are filled in here: format, id, name, kind, status, created, updated.

        Raises:
            ConfigError: when the folder cannot be written.
        """
        while True:
            stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
            path = Path(root) / f"{name}-{stamp}-{secrets.token_hex(2)}"
            if not path.exists():
                return cls.create_at(path, name, config_yaml, manifest)

    @classmethod
    def create_at(cls, path: Path, name: str, config_yaml: str, manifest: Mapping[str, Any]) -> RunDirectory:
        """Make a run directory at an exact path, whole or not at all; see `create`.

        Raises:
            ConfigError: when the folder cannot be written, or something is there already.
        """
        path = Path(path).absolute()
        now = _now()
        filled = {"format": FORMAT, "kind": "run", "id": path.name, "name": name, "status": "RUNNING"}
        filled |= {"created": now, "updated": now, **manifest}
        building = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            (building / "checkpoints").mkdir(parents=True)
            (building / "logs").mkdir()
            (building / "events.jsonl").touch()
            write_whole(building / "config.resolved.yaml", config_yaml)
            write_whole(building / "manifest.json", to_json(filled, indent=2) + "\n")
            building.rename(path)
            sync_folder(path.parent)
        except (OSError, OrchestratorError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            reason = getattr(cause, "strerror", None) or str(cause)
            hint = "name a folder that can be written, such as: storage.root=runs"
            raise ConfigError(
                [Problem(str(path.parent), "storage.root", f"cannot make a run directory here: {reason}", hint)]
            ) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Return the run directory at a path.

        Raises:
            ResumeError: when there is none, or its manifest cannot be read.
        """
        run = cls(Path(path).absolute())
        manifest = run.manifest
        if manifest.get("format") != FORMAT:
            raise ResumeError(
                f"{run.path} has run directory format {manifest.get('format')!r}, this version reads {FORMAT}",
                "use the version of orchestrator that wrote it; see versions in manifest.json",
            )
        return run

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the right to write.

        Raises:
            ResumeError: when another process holds it, named by its process id.
        """
        import filelock

        lock = filelock.FileLock(self.path / "run.lock")
        pid_file = self.path / "run.pid"
        try:
            lock.acquire(timeout=_LOCK_WAIT_S, poll_interval=0.02)
        except filelock.Timeout as error:
            raise ResumeError(
                f"{self.path} is being written by process {self.holder() or 'unknown'}",
                "wait for that process to end, or stop it, and type the same again",
            ) from error
        except OSError as error:
            raise cannot_write(self.path / "run.lock", error) from error
        try:
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
                leftover.unlink(missing_ok=True)
            write_whole(pid_file, f"{os.getpid()}\n")
            try:
                yield
            finally:
                pid_file.unlink(missing_ok=True)
        finally:
            lock.release()

    def locked(self) -> bool:
        """Return whether a process, this one included, holds `lock()` now."""
        import filelock

        if not (self.path / "run.lock").exists():
            return False
        lock = filelock.FileLock(self.path / "run.lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return True
        except OSError:  # a folder that only others may write: its lock cannot be tried
            return False
        lock.release()
        return False

    def holder(self) -> int | None:
        """Return the process id that last took `lock()` and did not give it back, if known."""
        try:
            return int((self.path / "run.pid").read_text())
        except (OSError, ValueError):
            return None

    # ---------------------------------------------------------------------------------------------- manifest

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it is on disk now; changing the returned dict changes nothing.

        Raises:
            ResumeError: when it is missing or is not a JSON object.
        """
        path = self.path / "manifest.json"
        try:
            manifest = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ResumeError(
                f"{self.path} is not a run directory: it has no manifest.json",
                f"see the runs there are: orchestrator list {self.path.parent}",
            ) from error
        except OSError as error:
            raise ResumeError(f"cannot read {path}: {error.strerror}", "make it readable and type it again") from error
        except ValueError as error:
            raise ResumeError(f"{path} is damaged: {error}", self._start_again("manifest.json")) from error
        if not isinstance(manifest, dict):
            raise ResumeError(f"{path} is damaged: it holds no JSON object", self._start_again("manifest.json"))
        if isinstance(manifest.get("metrics"), dict):
            manifest["metrics"] = {name: _number(value) for name, value in manifest["metrics"].items()}
        return manifest

    def update_manifest(self, **fields: Any) -> None:
        """Set fields of the manifest, and `updated`, in one step."""
        with self._writing:
            manifest = {**self.manifest, **fields, "updated": _now()}
            write_whole(self.path / "manifest.json", to_json(manifest, indent=2) + "\n")

    def _start_again(self, name: str) -> str:
        return f"put {name} back from a copy, or start again: orchestrator run {self.path}/config.resolved.yaml"

    # ------------------------------------------------------------------------------------------------ events

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event; a line that a crash cut short is closed first.

        Raises:
            OrchestratorError: when the disk is full or the file cannot be written.
        """
        line = to_json({"time": time.time(), "kind": kind, **fields}).encode() + b"\n"
        path = self.path / "events.jsonl"
        with self._writing:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    size = os.fstat(descriptor).st_size
                    if size and os.pread(descriptor, 1, size - 1) != b"\n":
                        line = b"\n" + line
                    while line:
                        line = line[os.write(descriptor, line) :]
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise cannot_write(path, error) from error

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events in order, without lines that a crash cut short."""
        for event, _ in self._events_from(0):
            yield event

    def _events_from(self, position: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each event from a byte position on, with the position after it."""
        try:
            file = (self.path / "events.jsonl").open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(position)
            for line in file:
                position += len(line)
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "kind" in event:
                    yield event, position

    # ----------------------------------------------------------------------------------------------- metrics

    def log(self, step: int, wall_s: float, virtual_s: float, values: Mapping[str, float]) -> None:
        """Record values of one step; they are on disk when this returns, and in the Parquet file after a flush.

        Args:
            values: by `scope/name`, such as `test/accuracy`; NaN and infinities are kept.
        """
        for name in values:
            if not all(name.partition("/")):
                raise ValueError(f"a metric is named scope/name, such as test/accuracy; got {name!r}")
        numbers = {name: float(value) for name, value in values.items()}
        self.event("metrics", step=int(step), wall_s=float(wall_s), virtual_s=float(virtual_s), values=numbers)

    def truncate_metrics(self, step: int) -> None:
        """Forget the metrics of later steps, as `resume` does before it trains those steps again."""
        self.event("metrics_truncated", step=int(step))
        self.flush_metrics()

    def flush_metrics(self) -> None:
        """Write `metrics.parquet` anew with everything logged so far.

        Raises:
            OrchestratorError: when the disk is full.
            ResumeError: when the present file is damaged.
        """
        import pyarrow
        import pyarrow.parquet

        with self._writing:
            events = self.path / "events.jsonl"
            if events.exists():
                with events.open("rb+") as file:
                    os.fsync(file.fileno())
            table, position = self._replay()
            sink = pyarrow.BufferOutputStream()
            table = table.replace_schema_metadata({_POSITION: str(position).encode()})
            pyarrow.parquet.write_table(table, sink, compression="zstd")
            write_whole(self.path / "metrics.parquet", sink.getvalue().to_pybytes())

    def metrics(self) -> pyarrow.Table:
        """Return all metrics in the order they were logged, with the columns `COLUMNS`, one value a row.

        Raises:
            ResumeError: when `metrics.parquet` or `events.jsonl` is damaged.
        """
        return self._replay()[0].replace_schema_metadata(None)

    def _replay(self) -> tuple[pyarrow.Table, int]:
        """Return the table and the position in `events.jsonl` it is complete to."""
        import pyarrow
        import pyarrow.compute

        table, position = self._read_parquet()
        schema = table.schema
        rows: list[tuple[Any, ...]] = []
        for event, end in self._events_from(position):
            try:
                if event["kind"] == "metrics":
                    rows += _rows(event)
                elif event["kind"] == "metrics_truncated":
                    table = table.filter(pyarrow.compute.field("step") <= int(event["step"]))
                    rows = [row for row in rows if row[0] <= event["step"]]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ResumeError(
                    f"{self.path}/events.jsonl is damaged between bytes {position} and {end}: {error!r}",
                    self._start_again("events.jsonl"),
                ) from error
            position = end
        if rows:
            columns = [pyarrow.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
            table = pyarrow.concat_tables([table, pyarrow.Table.from_arrays(columns, schema=schema)])
        return table, position

    def _read_parquet(self) -> tuple[pyarrow.Table, int]:
        import pyarrow
        import pyarrow.parquet

        path = self.path / "metrics.parquet"
        types = (pyarrow.int64(), pyarrow.float64(), pyarrow.float64(), pyarrow.string(), pyarrow.string())
        schema = pyarrow.schema(list(zip(COLUMNS, (*types, pyarrow.float64()), strict=True)))
        if not path.exists():
            return schema.empty_table(), 0
        hint = f"it is rebuilt from events.jsonl when you remove it: rm {path}"
        try:
            table = pyarrow.parquet.read_table(path, partitioning=None)
            position = int((table.schema.metadata or {})[_POSITION])
            table = table.replace_schema_metadata(None).cast(schema)
        except (OSError, pyarrow.ArrowException, KeyError, ValueError) as error:
            reason = "it does not say where in events.jsonl it ends" if isinstance(error, KeyError) else error
            raise ResumeError(f"{path} is damaged: {reason}", hint) from error
        events = self.path / "events.jsonl"
        if not events.exists() or events.stat().st_size < position:
            raise ResumeError(
                f"{events} is shorter than the {position} bytes that metrics.parquet was made from",
                self._start_again("events.jsonl"),
            )
        return table, position


def find_runs(root: Path | str) -> list[RunDirectory]:
    """Return the run directories directly inside a folder, oldest first; anything else there is passed over."""
    found = []
    try:
        folders = sorted(Path(root).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    for folder in folders:
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            run = RunDirectory.open(folder)
            found.append((str(run.manifest.get("created", "")), run))
        except ResumeError:
            continue
    return [run for _, run in sorted(found, key=lambda pair: (pair[0], pair[1].path.name))]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _rows(event: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Return the table rows of one `metrics` event."""
    head = (int(event["step"]), _number(event["wall_s"]), _number(event["virtual_s"]))
    names = [(name.partition("/"), value) for name, value in event["values"].items()]
    return [(*head, scope, name, _number(value)) for (scope, _, name), value in names]


def _number(value: Any) -> float:
    return float(value)  # also reads "NaN", "Infinity" and "-Infinity"
