"""Whatever is cut, repeated or answered late: each record reaches the server, and shows there once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import tracking_courier
from orchestrator.config.schema import Tracking
from orchestrator.rundir import RunDirectory
from orchestrator.tracking import Tracker, deliver
from orchestrator.tracking_outbox import Cursor, Outbox
from orchestrator.tracking_server import MAX_KEY_CHARS, Gone, clean_key, entries

WAIT_S = 30.0
values = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(logged=st.lists(st.dictionaries(st.text(min_size=1), values, max_size=3), max_size=8), cut=st.integers(0, 10**6))
def test_a_file_cut_anywhere_keeps_every_whole_record_and_takes_new_ones(
    logged: list[dict[str, float]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(Path(folder) / "tracking")
        records = [{"kind": "metrics", "step": i, "time_ms": i, "values": v} for i, v in enumerate(logged)]
        for record in records:
            outbox.append(record)
        ends = [line.end for line in outbox.lines()]
        assert [same(line.record) for line in outbox.lines()] == [same(record) for record in records]
        outbox.close()
        data = outbox.path.read_bytes()[: cut % (outbox.size_bytes() + 1)]
        outbox.path.write_bytes(data)

        num_whole = sum(end <= len(data) for end in ends)
        reopened = Outbox(Path(folder) / "tracking")
        new = {"kind": "metrics", "step": 99, "time_ms": 99, "values": {"new": 1.0}}
        reopened.append(new)
        found = [same(line.record) for line in reopened.lines()]
        reopened.close()
        # A cut right before a line's end leaves the line whole, since reopening closes it.
        assert found[:num_whole] == [same(record) for record in records[:num_whole]]
        assert found[-1] == same(new)
        assert len(found) in (num_whole + 1, num_whole + 2)


@given(st.binary(max_size=200))
def test_no_content_of_the_cursor_file_stops_a_delivery(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cursor.json").write_bytes(content)
        cursor = Cursor.load(Path(folder), "http://straw", 100)
        assert (cursor.records, cursor.artifacts, cursor.run_id) == (0, 0, None)


@given(st.lists(st.binary(max_size=60), max_size=10))
def test_no_content_of_the_outbox_stops_a_reader(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outbox = Outbox(Path(folder) / "tracking")
        outbox.path.write_bytes(b"\n".join(lines))
        outbox.append({"kind": "params", "values": {"a": "1"}})
        assert all(line.record["kind"] for line in outbox.lines())
        outbox.close()


@given(st.text())
def test_any_name_becomes_one_that_mlflow_takes(name: str) -> None:
    cleaned = clean_key(name)
    assert len(cleaned) <= MAX_KEY_CHARS
    assert all(c.isascii() and (c.isalnum() or c in "_-. :/") for c in cleaned)


class Unsteady:
    """A server that fails as told: before it has done its work, after it, or by forgetting the run."""

    def __init__(self, fates: list[str]) -> None:
        self.fates = list(fates)
        self.run: str | None = None
        self.num_created = 0
        self.metrics: set[tuple[Any, ...]] = set()
        self.params: dict[str, str] = {}
        self.artifacts: list[str] = []
        self.statuses: list[str] = []

    def __call__(self, target: Any) -> Unsteady:
        return self

    def _fate(self, work: Any) -> Any:
        fate = self.fates.pop(0) if self.fates else "ok"
        if fate == "down":
            raise ConnectionRefusedError("down")
        if fate == "forget":
            self.run, self.metrics, self.params, self.artifacts, self.statuses = None, set(), {}, [], []
        done = work()
        if fate == "lost":
            raise TimeoutError("the answer got lost")
        return done

    def _need(self, run_id: str) -> None:
        if run_id != self.run:
            raise Gone("no such run")

    def exists(self, run_id: str) -> bool:
        return bool(self._fate(lambda: run_id == self.run))

    def find_or_create(self, head: dict[str, Any]) -> tuple[str, str]:
        def work() -> tuple[str, str]:
            if self.run is None:
                self.num_created += 1
                self.run = f"run{self.num_created}"
            return "1", self.run

        return self._fate(work)  # type: ignore[no-any-return]

    def send(self, run_id: str, values: list[Any]) -> None:
        def work() -> None:
            self._need(run_id)
            for value in values:
                if value.kind == "metric":
                    self.metrics.add((value.name, value.step, value.time_ms, repr(value.value)))
                else:
                    assert self.params.setdefault(value.name, value.value) == value.value

        self._fate(work)

    def upload(self, run_id: str, path: Path) -> None:
        def work() -> None:
            self._need(run_id)
            self.artifacts.append(path.name)

        self._fate(work)

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        def work() -> None:
            self._need(run_id)
            self.statuses.append(status)

        self._fate(work)


@pytest.fixture(scope="module")
def fast() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PAUSE_S", "LONGEST_PAUSE_S", "FIRST_RETRY_S", "LAST_RETRY_S", "RETRY_WHEN_ENDING_S"):
            patch.setattr(tracking_courier, name, 0.0005)
        yield patch


fates = st.lists(st.sampled_from(["ok", "ok", "down", "lost", "forget"]), max_size=25)
lives = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(fates=fates, lives=lives)
def test_any_sequence_of_failures_and_crashes_delivers_every_step_exactly_once(
    fast: pytest.MonkeyPatch, fates: list[str], lives: list[int]
) -> None:
    """Each life trains some steps and is killed; the next goes on one step before, as from a checkpoint."""
    server = Unsteady(fates)
    fast.setattr(tracking_courier, "Server", server)
    where = Tracking(uri="http://straw:5000")
    with tempfile.TemporaryDirectory() as folder:
        rundir = RunDirectory.create(Path(folder), "exp", "seed: 1\n", {})
        step = 0
        for num_steps in lives:
            tracker = Tracker.open(
                where, rundir, experiment_name="e", run_name="r", params={"a": "1"}, tags={}, notify=lambda text: None
            )
            for at in range(max(step - 1, 0), step + num_steps):
                tracker.log(at, {"test/loss": at / 7, "test/accuracy": float("nan")})
            step += num_steps
            tracker._courier.stop(0.002)
            tracker._courier._thread.join(WAIT_S)
            tracker._outbox.close()
        server.fates.clear()
        assert deliver(rundir, where, WAIT_S) == 0
        tracker = Tracker.open(
            where, rundir, experiment_name="e", run_name="r", params={"a": "1"}, tags={}, notify=lambda text: None
        )
        assert tracker.finish("FINISHED", WAIT_S) == 0
    assert sorted((name, at) for name, at, _, _ in server.metrics) == sorted(
        (name, at) for name in ("test/loss", "test/accuracy") for at in range(step)
    )
    assert server.params == {"a": "1"}
    assert "config.resolved.yaml" in server.artifacts
    assert server.statuses[-1] == "FINISHED"


def test_texts_too_long_for_mlflow_are_cut_and_names_cleaned() -> None:
    (param,) = entries({"kind": "params", "values": {"model.kwargs.ä+b": "x" * 10_000}})
    assert param.name == "model.kwargs.__b"
    assert len(param.value) == 6000 and param.value.endswith("x…")


def same(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its floats as text, so that NaN equals NaN."""
    return {**record, "values": {name: repr(float(value)) for name, value in record["values"].items()}}
