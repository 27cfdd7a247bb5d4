"""The background thread that carries the outbox to the tracking server, through outages.

It alone moves the cursor. After a failure it waits, twice as long each time up to a cap, and tells the user once; when
the server takes metrics again it says how many records it delivered. It delivers at most once a second, and rests
longer after a costly delivery, so that it takes some 2 % of one core from training; short rounds share a batch.
After `stop` returned it touches neither the run directory nor the terminal, even when a call is still hanging in the
network.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.files import cannot_write, to_json
from orchestrator.rundir import RunDirectory
from orchestrator.tracking_outbox import Cursor, Line, Outbox
from orchestrator.tracking_server import THREAD_NAME, Entry, Gone, Refused, Server, entries, is_network, reason
from orchestrator.tracking_uri import Target

PAUSE_S = 1.0  # between two deliveries, at least
LONGEST_PAUSE_S = 5.0
CPU_SHARE = 0.02  # of one core, which deliveries may take on average; short pauses grow to keep it
FIRST_RETRY_S = 1.0
LAST_RETRY_S = 30.0
RETRY_WHEN_ENDING_S = 1.0
MAX_VALUES = 500  # in one request


class _Closed(Exception):
    """The run ended while a call was under way."""


class Courier:
    """Delivers one outbox to one server from a thread of its own.

    Args:
        notify: called from the thread with one line for the user.
    """

    def __init__(
        self, outbox: Outbox, cursor: Cursor, target: Target, rundir: RunDirectory, notify: Callable[[str], None]
    ) -> None:
        self.outbox = outbox
        self.cursor = cursor
        self.target = target
        self._rundir = rundir
        self._notify = notify
        self._server = Server(target)
        self._opened = False
        self._num_delivered = 0  # since the outage began
        self._down_because = ""
        self._told: set[str] = set()
        self._bell = threading.Condition()
        self._rung = False
        self._listening = False
        self._ending = False
        self._gate = threading.Lock()  # whoever holds it may write to the run directory
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_NAME}-{rundir.path.name}", daemon=True)

    def start(self) -> None:
        """Begin delivering."""
        self._thread.start()

    def wake(self) -> None:
        """Say that the outbox has grown."""
        if not self._rung:
            self._rung = True  # before looking whether the thread waits: it looks in the other order
            if self._listening:
                with self._bell:
                    self._bell.notify()

    def stop(self, timeout_s: float) -> int:
        """Deliver what is left until the time is up; return how many records are still to be delivered."""
        with self._bell:
            self._ending = True
            self._bell.notify()
        try:
            self._thread.join(timeout_s)
        finally:
            with self._gate:
                self._closed = True
        with self._bell:
            self._bell.notify()
        return self.num_pending()

    def num_pending(self) -> int:
        """Return how many records the server has not confirmed."""
        return self._num_pending_lines() + self.outbox.num_waiting

    def _num_pending_lines(self) -> int:
        pending = 0
        for record, end in self.outbox.lines(min(self.cursor.records, self.cursor.artifacts)):
            pending += end > (self.cursor.artifacts if record["kind"] == "artifact" else self.cursor.records)
        return pending

    # ------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            began_s = time.thread_time()
            try:
                self._deliver()
            except _Closed:
                return
            except Exception as error:
                self._opened = False  # whoever failed may have lost the run
                self._down(error)
                wait_s, retry_s = retry_s, min(2 * retry_s, LAST_RETRY_S)
                if not self._rest(wait_s):
                    return
            else:
                self._up()
                retry_s = FIRST_RETRY_S
                if self._ending and not self._num_pending_lines():
                    return
                pause_s = min(max(PAUSE_S, (time.thread_time() - began_s) / CPU_SHARE), LONGEST_PAUSE_S)
                if not self._rest(pause_s) or not self._wait_for_bell():
                    return

    def _rest(self, wait_s: float) -> bool:
        """Wait, less when the run is ending; False when it is over."""
        with self._bell:
            was_ending = self._ending
            if was_ending:
                self._bell.wait_for(lambda: self._closed, min(wait_s, RETRY_WHEN_ENDING_S))
            else:
                self._bell.wait_for(lambda: self._closed or self._ending, wait_s)
            return not self._closed

    def _wait_for_bell(self) -> bool:
        with self._bell:
            self._listening = True
            self._bell.wait_for(lambda: self._rung or self._ending or self._closed)
            self._listening = self._rung = False
            return not self._closed

    # -------------------------------------------------------------------------------------------------- delivering

    def _deliver(self) -> None:
        """Deliver all that is in the outbox, into a new run when the old one was removed from the server."""
        try:
            self._deliver_into_run()
        except Gone:
            self.tell(
                f"run {self.cursor.run_id} is no longer on MLflow at {self.target.shown}; "
                "everything is delivered again, into a new run",
            )
            with self._writing():
                self.cursor.restart()
                self.cursor.save()
            self._opened = False
            self._deliver_into_run()

    def _deliver_into_run(self) -> None:
        """Deliver records in their order; an artifact's failure is raised when all else is done."""
        self._open_run()
        failed: Exception | None = None
        batch: list[Line] = []
        num_values = 0
        for line in self.outbox.lines(self.cursor.records):
            kind = line.record["kind"]
            if kind == "status":
                self._send(batch)
                batch, num_values = [], 0
                failed = failed or self._deliver_artifacts()
                self._server.set_status(self._run_id, line.record["status"], line.record["time_ms"])
                self._advance([line])
                continue
            size = len(line.record.get("values", ()))
            if batch and (num_values + size > MAX_VALUES or batch[-1].record["kind"] != kind):
                self._send(batch)
                batch, num_values = [], 0
            batch.append(line)
            num_values += size
        self._send(batch)
        failed = failed or self._deliver_artifacts()
        if failed is not None:
            raise failed

    @property
    def _run_id(self) -> str:
        assert self.cursor.run_id is not None
        return self.cursor.run_id

    def _open_run(self) -> None:
        """Find the run on the server, or create it."""
        if self._opened and self.cursor.parent_known:
            return
        run = next(line.record for line in self.outbox.lines() if line.record["kind"] == "run")
        if not self._opened:
            if self.cursor.run_id is not None and not self._server.exists(self.cursor.run_id):
                raise Gone("it is not there")
            if self.cursor.run_id is None:
                experiment_id, run_id = self._server.find_or_create(run)
                with self._writing():
                    self.cursor.experiment_id, self.cursor.run_id = experiment_id, run_id
                    self.cursor.save()
            with self._writing():
                ids = {"experiment_id": self.cursor.experiment_id, "run_id": self.cursor.run_id}
                self._rundir.update_manifest(mlflow={**self.target.record(), **ids})
            self._opened = True
        parent = run.get("parent")
        known = not parent or self._server.tie_to_parent(self.cursor.experiment_id or "0", self._run_id, parent)
        if known:
            with self._writing():
                self.cursor.parent_known = True
                self.cursor.save()

    def _send(self, batch: list[Line]) -> None:
        """Deliver records other than statuses; artifacts among them are passed over."""
        if not batch:
            return
        values = [value for line in batch if "values" in line.record for value in entries(line.record)]
        if values:
            self._send_values(values)
        self._advance(batch)

    def _send_values(self, values: list[Entry]) -> None:
        try:
            self._server.send(self._run_id, values)
        except Refused as error:
            if len(values) == 1:
                self._keep_refused(to_json(values[0]._asdict()), values[0].name, error)
                return
            middle = len(values) // 2
            self._send_values(values[:middle])
            self._send_values(values[middle:])

    def _deliver_artifacts(self) -> Exception | None:
        """Upload the files that are queued, each name once; return what stopped it, if anything."""
        waiting = [line for line in self.outbox.lines(self.cursor.artifacts) if line.record["kind"] == "artifact"]
        newest = {Path(line.record["path"]).name: line.end for line in waiting}
        for line in waiting:
            path = self._rundir.path / line.record["path"]
            if newest[path.name] == line.end:
                try:
                    if path.exists():
                        self._server.upload(self._run_id, path)
                    else:
                        self._keep_refused(to_json(line.record), path.name, FileNotFoundError("the file is gone"))
                except Gone:
                    raise
                except Exception as error:
                    return _ArtifactError(f"artifact {path.name}: {reason(error)}", error)
            with self._writing():
                self.cursor.artifacts = line.end
                self.cursor.save()
            self._num_delivered += 1
        if self.cursor.artifacts < self.cursor.records:
            with self._writing():
                self.cursor.artifacts = self.cursor.records
                self.cursor.save()
        return None

    def _advance(self, batch: list[Line]) -> None:
        """Remember that records other than artifacts are delivered."""
        with_artifact = any(line.record["kind"] == "artifact" for line in batch)
        with self._writing():
            if self.cursor.artifacts >= self.cursor.records and not with_artifact:
                self.cursor.artifacts = max(self.cursor.artifacts, batch[-1].end)
            self.cursor.records = batch[-1].end
            self.cursor.save()
        self._num_delivered += sum(line.record["kind"] != "artifact" for line in batch)

    def _keep_refused(self, line: str, name: str, error: Exception) -> None:
        """Put aside what the server will never take, so that it holds nothing else up, and say so."""
        path = self.outbox.path.with_name("refused.jsonl")
        with self._writing():
            try:
                with path.open("a") as file:
                    file.write(line + "\n")
            except OSError as full:
                raise cannot_write(path, full) from full
        self.tell(
            f"MLflow at {self.target.shown} refuses {name!r} ({reason(error)}); such values are in {path}",
            once="refused",
        )

    # ------------------------------------------------------------------------------------------- telling the user

    def _writing(self) -> _Gate:
        return _Gate(self)

    def _down(self, error: Exception) -> None:
        cause = error.cause if isinstance(error, _ArtifactError) else error
        because = str(error) if isinstance(error, _ArtifactError) else reason(error)
        if self._down_because:
            return
        self._down_because = because
        self._num_delivered = 0
        said = "does not answer" if is_network(cause) else "does not take what it is sent"
        self.tell(
            f"MLflow at {self.target.shown} {said} ({because}); "
            f"metrics are kept in {self._rundir.path} and delivered when it is back"
        )
        self._record("tracking_down", uri=self.target.shown, reason=because)

    def _up(self) -> None:
        if not self._down_because:
            return
        self._down_because = ""
        self.tell(f"MLflow at {self.target.shown} is back: {self._num_delivered} records delivered")
        self._record("tracking_up", uri=self.target.shown, delivered=self._num_delivered)

    def _record(self, kind: str, **fields: object) -> None:
        try:
            with self._writing():
                self._rundir.event(kind, **fields)
        except OrchestratorError as error:
            self.tell(str(error), once="event")
        except _Closed:
            return

    def tell(self, text: str, *, once: str = "", late: bool = False) -> None:
        """Say something to the user; when the run is over, only what is said `late`. Never raises."""
        if once and once in self._told:
            return
        self._told.add(once)
        with self._gate:
            if not self._closed or late:
                try:
                    self._notify(text)
                except Exception as error:  # a terminal that is gone must not end the delivery
                    print(f"{text}\n(the progress display failed: {error!r})", file=sys.stderr)


class _ArtifactError(Exception):
    """A file could not be uploaded; metrics were delivered."""

    def __init__(self, message: str, cause: Exception) -> None:
        super().__init__(message, cause)
        self.cause = cause

    def __str__(self) -> str:
        return str(self.args[0])


class _Gate:
    """Holds the right to write to the run directory; raises `_Closed` when the run is over."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier

    def __enter__(self) -> None:
        self._courier._gate.acquire()
        if self._courier._closed:
            self._courier._gate.release()
            raise _Closed

    def __exit__(self, *exc: object) -> None:
        self._courier._gate.release()


def now_ms() -> int:
    """Return the time as MLflow counts it."""
    return int(time.time() * 1000)
