"""The outbox: what the tracking server is to receive, on disk before anything is sent, and how far delivery came.

`tracking/outbox.jsonl` is appended to, one JSON object a line, and never rewritten. `tracking/cursor.json` names the
run on the server and two positions in the outbox: all but artifacts, and artifacts, which fail for reasons of
their own and must not hold up metrics. A line is delivered at least once: the position moves after the server answered.

Lines, by `kind`: `run` {key, experiment, name, parent, time_ms}, `params` and `tags` {values}, `metrics` {step,
time_ms, values}, `artifact` {path}, `status` {status, time_ms}.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.files import to_json, write_whole


class Line(NamedTuple):
    """One record of the outbox, and the position after it."""

    record: dict[str, Any]
    end: int


class Outbox:
    """An append-only file of records. One process appends; a background thread of it reads."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.path = folder / "outbox.jsonl"
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []  # what a full disk did not take yet
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._size = os.fstat(self._file).st_size
        if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
            self._size += os.write(self._file, b"\n")  # closes a line that a crash cut short; readers skip it

    def append(self, *records: Mapping[str, Any]) -> None:
        """Add records; they survive the end of this process when this returns.

        Raises:
            OSError: the disk is full; the records are kept in memory and go first into the next append.
        """
        lines = [_encode(record) for record in records]
        with self._lock:
            self._waiting += lines
            data = b"".join(self._waiting)
            size = self._size
            try:
                while self._size < size + len(data):
                    self._size += os.write(self._file, data[self._size - size :])
            except OSError:
                os.ftruncate(self._file, size)
                self._size = size
                raise
            self._waiting.clear()

    @property
    def num_waiting(self) -> int:
        """Records that are in memory only, because the disk is full."""
        return len(self._waiting)

    def close(self) -> None:
        """Give the file back; reading goes on working."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def lines(self, position: int = 0) -> Iterator[Line]:
        """Yield whole records from a position on; a line that a crash cut short, or that is being written, is not."""
        with self.path.open("rb") as file:
            file.seek(position)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return
                position += len(raw)
                record = _decode(raw)
                if record is not None:
                    yield Line(record, position)

    def size_bytes(self) -> int:
        """Return the position after the last record."""
        return self.path.stat().st_size

    def metrics_from(self, step: int) -> dict[int, dict[str, float]]:
        """Return what was recorded for a step and later ones: step -> name -> the first value."""
        found: dict[int, dict[str, float]] = {}
        for record, _ in self.lines():
            if record["kind"] == "metrics" and record["step"] >= step:
                values = found.setdefault(record["step"], {})
                for name, value in record["values"].items():
                    values.setdefault(name, float(value))
        return found


@dataclass
class Cursor:
    """How far delivery came.

    Args:
        path: its file. target: which server this is about; for another one, delivery begins anew.
        run_id, experiment_id: the run there. records, artifacts: positions in the outbox.
        parent_known: whether the run is tied to its sweep's run, if it has one.
    """

    path: Path
    target: str
    run_id: str | None = None
    experiment_id: str | None = None
    records: int = 0
    artifacts: int = 0
    parent_known: bool = False

    @classmethod
    def load(cls, folder: Path, target: str, size_bytes: int) -> Cursor:
        """Return the cursor on disk; one at the beginning when it is missing, damaged or about another server.

        Delivering again what was delivered changes nothing on the server, so the beginning is always safe.
        """
        path = folder / "cursor.json"
        try:
            stored = json.loads(path.read_bytes())
            cursor = cls(path, **stored)
            usable = cursor.target == target and 0 <= cursor.records <= size_bytes
            return cursor if usable and 0 <= cursor.artifacts <= size_bytes else cls(path, target)
        except (OSError, ValueError, TypeError):
            return cls(path, target)

    def save(self) -> None:
        """Write it to disk.

        Raises:
            OrchestratorError: when the disk is full.
        """
        write_whole(self.path, to_json({name: value for name, value in asdict(self).items() if name != "path"}))

    def restart(self) -> None:
        """Forget the run on the server, so that everything is delivered into a new one."""
        self.run_id = self.experiment_id = None
        self.records = self.artifacts = 0
        self.parent_known = False


def chunks(values: Mapping[str, str], size: int) -> Iterator[dict[str, str]]:
    """Yield a mapping in parts of at most `size` entries."""
    names = list(values)
    for begin in range(0, len(names), size):
        yield {name: values[name] for name in names[begin : begin + size]}


def head(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """Return what the outbox says about the run itself: kind -> merged values, for `run`, `params` and `tags`."""
    found: dict[str, dict[str, Any]] = {"run": {}, "params": {}, "tags": {}}
    for record, _ in lines:
        if record["kind"] == "run":
            found["run"] = found["run"] or record
        elif record["kind"] in found:
            found[record["kind"]].update(record["values"])
    return found


def _encode(record: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(record, allow_nan=False).encode() + b"\n"
    except (ValueError, TypeError):  # NaN and infinities, which strict JSON lacks; numpy scalars
        return to_json(record).encode() + b"\n"


_FIELDS: dict[str, dict[str, type]] = {
    "run": {"key": str, "experiment": str, "name": str, "time_ms": int},
    "params": {"values": dict},
    "tags": {"values": dict},
    "metrics": {"step": int, "time_ms": int, "values": dict},
    "artifact": {"path": str},
    "status": {"status": str, "time_ms": int},
}


def _decode(raw: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None when a crash cut it short."""
    try:
        record: Any = json.loads(raw)
    except ValueError:
        return None
    fields = _FIELDS.get(record.get("kind", "")) if isinstance(record, dict) else None
    whole = fields is not None and all(isinstance(record.get(name), kind) for name, kind in fields.items())
    return dict(record) if whole else None
