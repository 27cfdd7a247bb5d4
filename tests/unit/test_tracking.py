"""The tracker against a server of straw that can be down, slow, forgetful or picky. The real one: tests/cluster."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tracking_courier, tracking_outbox
from orchestrator.config.schema import Tracking
from orchestrator.errors import ConfigError
from orchestrator.rundir import RunDirectory
from orchestrator.tracking import Tracker, deliver
from orchestrator.tracking_server import Gone, Refused

WAIT_S = 20.0
SETTINGS = Tracking(uri="http://straw:5000")


class StrawServer:
    """Keeps what MLflow keeps, with MLflow's rule that equal metrics are one; `answer` decides each call's fate."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.answer = lambda call: None
        self.num_hanging = threading.Semaphore(0)
        self.seen = threading.Condition()

    def __call__(self, target: Any) -> StrawServer:
        return self

    def _called(self, call: str) -> None:
        with self.seen:
            self.calls.append(call)
            self.seen.notify_all()
        self.answer(call)

    def wait_for(self, call: str, times: int = 1) -> None:
        with self.seen:
            assert self.seen.wait_for(lambda: self.calls.count(call) >= times, WAIT_S), f"no {call}: {self.calls}"

    def exists(self, run_id: str) -> bool:
        self._called("exists")
        return run_id in self.runs

    def find_or_create(self, head: dict[str, Any]) -> tuple[str, str]:
        self._called("find")
        for run_id, run in self.runs.items():
            if run["key"] == head["key"]:
                return "1", run_id
        run_id = f"run{len(self.calls)}"
        new = {"metrics": set(), "params": {}, "tags": {}, "artifacts": [], "status": ["RUNNING"]}
        self.runs[run_id] = {"key": head["key"], "name": head["name"], "parent": None, **new}
        self._called("created")
        return "1", run_id

    def tie_to_parent(self, experiment_id: str, run_id: str, parent: str) -> bool:
        self._called("tie")
        found = [name for name, run in self.runs.items() if parent in (name, f"outbox:{run['key']}")]
        if found:
            self.runs[run_id]["parent"] = found[0]
        return bool(found)

    def send(self, run_id: str, values: list[Any]) -> None:
        self._called("send")
        if run_id not in self.runs:
            raise Gone("no such run")
        if any("poison" in value.name for value in values):
            raise Refused("it does not like poison")
        run = self.runs[run_id]
        for value in values:
            if value.kind == "metric":
                run["metrics"].add((value.name, value.step, value.time_ms, repr(value.value)))
            else:
                run[value.kind + "s"][value.name] = value.value
        self._called("sent")

    def upload(self, run_id: str, path: Path) -> None:
        self._called("upload")
        self.runs[run_id]["artifacts"].append((path.name, path.read_text()))

    def set_status(self, run_id: str, status: str, time_ms: int) -> None:
        self._called("status")
        self.runs[run_id]["status"].append(status)

    def history(self, name: str, run: str | None = None) -> list[tuple[int, float]]:
        metrics = self.runs[run or next(iter(self.runs))]["metrics"]
        return sorted((step, float(value)) for key, step, _, value in metrics if key == name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> StrawServer:
    straw = StrawServer()
    monkeypatch.setattr(tracking_courier, "Server", straw)
    for name in ("PAUSE_S", "LONGEST_PAUSE_S", "FIRST_RETRY_S", "LAST_RETRY_S", "RETRY_WHEN_ENDING_S"):
        monkeypatch.setattr(tracking_courier, name, 0.01)
    return straw


@pytest.fixture
def rundir(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "exp", "seed: 1\n", {})


@pytest.fixture
def said() -> list[str]:
    return []


def start(rundir: RunDirectory, said: list[str], **changed: Any) -> Tracker:
    given: dict[str, Any] = {"experiment_name": "exp", "run_name": "one", "params": {"lr": "0.1"}, "tags": {"v": "1"}}
    given |= {"notify": said.append, "settings": SETTINGS, **changed}
    return Tracker.open(given.pop("settings"), rundir, **given)


def down(call: str) -> None:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def hang_until(event: threading.Event) -> Any:
    def answer(call: str) -> None:
        assert event.wait(WAIT_S)

    return answer


def kinds(rundir: RunDirectory) -> list[str]:
    return [event["kind"] for event in rundir.events()]


def kill(tracker: Tracker) -> None:
    """End a tracker as a killed process would: nothing more is delivered or written."""
    tracker._courier.stop(0.0)
    tracker._courier._thread.join(WAIT_S)
    tracker._outbox.close()


# ------------------------------------------------------------------------------------------------------- it works


def test_everything_arrives_and_the_user_hears_nothing(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    tracker = start(rundir, said)
    for step in range(5):
        tracker.log(step, {"test/accuracy": step / 10, "test/loss": float("nan")})
    (rundir.path / "report.html").write_text("report")
    tracker.artifact(rundir.path / "report.html")
    assert tracker.finish("FINISHED", WAIT_S) == 0
    (run,) = server.runs.values()
    assert server.history("test/accuracy") == [(step, step / 10) for step in range(5)]
    assert len(server.history("test/loss")) == 5
    assert (run["params"], run["tags"], run["name"]) == ({"lr": "0.1"}, {"v": "1"}, "one")
    assert run["artifacts"] == [("config.resolved.yaml", "seed: 1\n"), ("report.html", "report")]
    assert run["status"] == ["RUNNING", "FINISHED"]
    assert said == []
    (run_id,) = server.runs
    recorded = {"uri": SETTINGS.uri, "given": SETTINGS.uri, "experiment_id": "1", "run_id": run_id}
    assert rundir.manifest["mlflow"] == recorded


def test_rounds_that_are_faster_than_the_server_share_batches(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    go = threading.Event()
    server.answer = hang_until(go)
    tracker = start(rundir, said)
    for step in range(1000):
        tracker.log(step, {"test/loss": float(step)})
    go.set()
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert len(server.history("test/loss")) == 1000
    assert server.calls.count("send") <= 6


def test_a_uri_that_cannot_work_is_refused_before_anything_is_written(rundir: RunDirectory, said: list) -> None:
    for uri in ("mlruns", "file:///tmp/mlruns", "gopher://x"):
        with pytest.raises(ConfigError):
            start(rundir, said, settings=Tracking(uri=uri))
    assert not (rundir.path / "tracking").exists()


# -------------------------------------------------------------------------------------------------------- outages


def test_a_server_that_is_down_from_start_to_end_loses_nothing(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    server.answer = down
    tracker = start(rundir, said)
    tracker.log(1, {"test/loss": 1.0})
    server.wait_for("find", times=3)
    assert tracker.finish("FINISHED", 0.1) == 6  # the run, params, tags, configuration, metrics, status
    assert len(said) == 2
    assert "does not answer (Connection refused)" in said[0] and str(rundir.path) in said[0]
    assert "orchestrator resume" in said[1] and "6 records" in said[1]
    assert kinds(rundir).count("tracking_down") == 1
    server.answer = lambda call: None
    assert deliver(rundir, SETTINGS, WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0)]
    (run,) = server.runs.values()
    assert run["status"] == ["RUNNING", "FINISHED"]
    assert deliver(rundir, SETTINGS, WAIT_S) == 0
    assert run["status"] == ["RUNNING", "FINISHED"], "delivering a complete outbox calls nobody"


def test_an_outage_is_told_once_and_its_end_once_with_the_number(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    tracker = start(rundir, said)
    server.wait_for("upload")
    server.answer = down
    for step in range(7):
        tracker.log(step, {"test/loss": 1.0})
    server.wait_for("exists", times=4)
    server.answer = lambda call: None
    server.wait_for("sent", times=2)
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert [text.split(" (")[0].split(": ")[-1] for text in said] == [
        "MLflow at http://straw:5000 does not answer",
        said[1].split(": ")[-1],
    ]
    assert "is back: " in said[1] and "records delivered" in said[1]
    assert int(said[1].split("is back: ")[1].split()[0]) >= 7
    up = next(event for event in rundir.events() if event["kind"] == "tracking_up")
    assert up["delivered"] >= 7
    assert len(server.history("test/loss")) == 7


def test_a_server_that_hangs_delays_neither_training_nor_the_end_of_the_run(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    go = threading.Event()
    server.answer = hang_until(go)
    tracker = start(rundir, said)
    for step in range(10):
        tracker.log(step, {"test/loss": 1.0})
    assert tracker.finish("FINISHED", 0.05) == 15
    before = {path.name: path.read_bytes() for path in rundir.path.rglob("*") if path.is_file()}
    go.set()
    tracker._courier._thread.join(WAIT_S)
    after = {path.name: path.read_bytes() for path in rundir.path.rglob("*") if path.is_file()}
    assert after == before, "after finish nothing may write to the run directory"
    assert deliver(rundir, SETTINGS, WAIT_S) == 0
    assert len(server.runs) == 1
    assert len(server.history("test/loss")) == 10


@pytest.mark.parametrize("lost", ["created", "sent"])
def test_an_answer_that_gets_lost_makes_no_second_run_and_no_second_point(
    server: StrawServer, rundir: RunDirectory, said: list, lost: str
) -> None:
    failed: list[str] = []

    def answer(call: str) -> None:
        if call == lost and len(failed) < 3:
            failed.append(call)
            raise TimeoutError("no answer")

    server.answer = answer
    tracker = start(rundir, said)
    for step in range(5):
        tracker.log(step, {"test/loss": float(step)})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert failed
    assert len(server.runs) == 1
    assert server.history("test/loss") == [(step, float(step)) for step in range(5)]


def test_a_value_that_the_server_refuses_is_put_aside_and_holds_nothing_up(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    tracker = start(rundir, said, params={"a": "1", "poison": "2", "z": "3"})
    tracker.log(1, {"test/loss": 1.0, "test/poison": 2.0})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    (run,) = server.runs.values()
    assert run["params"] == {"a": "1", "z": "3"}
    assert server.history("test/loss") == [(1, 1.0)]
    assert len(said) == 1 and "refuses 'poison'" in said[0]
    refused = (rundir.path / "tracking" / "refused.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in refused] == ["poison", "test/poison"]


def test_a_run_that_was_removed_from_the_server_is_delivered_again_in_whole(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    tracker = start(rundir, said)
    tracker.log(1, {"test/loss": 1.0})
    server.wait_for("sent", times=3)
    server.wait_for("upload")
    server.runs.clear()
    tracker.log(2, {"test/loss": 2.0})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0), (2, 2.0)]
    (run_id,) = server.runs
    assert rundir.manifest["mlflow"]["run_id"] == run_id
    assert any("no longer on MLflow" in text for text in said)


def test_an_artifact_that_cannot_be_uploaded_holds_up_neither_metrics_nor_status(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    def answer(call: str) -> None:
        if call == "upload":
            raise PermissionError(errno.EACCES, "Permission denied")

    server.answer = answer
    tracker = start(rundir, said)
    tracker.log(1, {"test/loss": 1.0})
    assert tracker.finish("FAILED", 0.5) == 1
    (run,) = server.runs.values()
    assert run["status"] == ["RUNNING", "FAILED"]
    assert server.history("test/loss") == [(1, 1.0)]
    assert "artifact config.resolved.yaml: Permission denied" in said[0]


def test_of_a_file_queued_twice_the_newest_is_sent_and_one_that_is_gone_is_told(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    server.answer = down
    tracker = start(rundir, said)
    (rundir.path / "report.html").write_text("new")
    tracker.artifact(rundir.path / "checkpoints" / "report.html")
    tracker.artifact(rundir.path / "report.html")
    tracker.artifact(rundir.path / "vanished.arrow")
    server.answer = lambda call: None
    assert tracker.finish("FINISHED", WAIT_S) == 0
    (run,) = server.runs.values()
    assert run["artifacts"] == [("config.resolved.yaml", "seed: 1\n"), ("report.html", "new")]
    assert any("'vanished.arrow' (the file is gone)" in text for text in said)


def test_a_terminal_that_fails_does_not_end_the_delivery(
    server: StrawServer, rundir: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError("terminal gone")

    server.answer = down
    tracker = start(rundir, [], notify=broken)
    server.wait_for("find", times=2)
    server.answer = lambda call: None
    tracker.log(1, {"test/loss": 1.0})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0)]
    assert "does not answer" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------- crash and resume


def test_after_a_kill_a_resume_delivers_the_rest_into_the_same_run(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    first = start(rundir, said)
    first.log(1, {"test/loss": 1.0})
    server.wait_for("upload")
    server.answer = down
    first.log(2, {"test/loss": 2.0})
    kill(first)
    server.answer = lambda call: None
    second = start(rundir, said)
    second.log(3, {"test/loss": 3.0})
    assert second.finish("FINISHED", WAIT_S) == 0
    (run,) = server.runs.values()
    assert server.history("test/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert run["status"] == ["RUNNING", "RUNNING", "FINISHED"]


def test_steps_that_are_trained_again_show_once(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    first = start(rundir, said)
    for step in range(6):
        first.log(step, {"test/loss": step / 3, "test/accuracy": float("nan"), "time/round_s": 1.0 + step})
    kill(first)
    second = start(rundir, said)
    for step in range(3, 9):  # the checkpoint was of step 2
        second.log(step, {"test/loss": step / 3, "test/accuracy": float("nan"), "time/round_s": 2.0 + step})
    assert second.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(step, step / 3) for step in range(9)]
    assert [step for step, _ in server.history("test/accuracy")] == list(range(9))
    assert [step for step, _ in server.history("time/round_s")] == list(range(9))


def test_a_value_that_came_out_differently_is_not_hidden(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    first = start(rundir, said)
    first.log(1, {"test/loss": 1.0})
    kill(first)
    second = start(rundir, said)
    second.log(1, {"test/loss": 1.5, "test/accuracy": 0.5})
    assert second.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0), (1, 1.5)]
    assert server.history("test/accuracy") == [(1, 0.5)]


def test_changed_parameters_of_a_resume_become_tags(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    assert start(rundir, said, params={"rounds": "5", "lr": "0.1"}).finish("FINISHED", WAIT_S) == 0
    again = start(rundir, said, params={"rounds": "9", "lr": "0.1", "new": "x"}, tags={"v": "2"})
    assert again.finish("FINISHED", WAIT_S) == 0
    (run,) = server.runs.values()
    assert run["params"] == {"rounds": "5", "lr": "0.1", "new": "x"}
    assert run["tags"] == {"v": "2", "resumed.rounds": "9"}
    assert start(rundir, said, params={"rounds": "5", "lr": "0.1", "new": "x"}).finish("FINISHED", WAIT_S) == 0
    assert run["tags"]["resumed.rounds"] == "5"


def test_another_server_gets_the_whole_run(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    first = start(rundir, said)
    first.log(1, {"test/loss": 1.0})
    assert first.finish("KILLED", WAIT_S) == 0
    old = dict(server.runs)
    server.runs.clear()
    second = start(rundir, said, settings=Tracking(uri="http://other:5000"))
    second.log(2, {"test/loss": 2.0})
    assert second.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0), (2, 2.0)]
    assert not old.keys() & server.runs.keys() and rundir.manifest["mlflow"]["uri"] == "http://other:5000"


def test_a_line_that_a_crash_cut_short_is_passed_over(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    server.answer = down
    first = start(rundir, said)
    first.log(1, {"test/loss": 1.0})
    kill(first)
    with (rundir.path / "tracking" / "outbox.jsonl").open("ab") as file:
        file.write(b'{"kind": "metrics", "step": 2, "time')
    server.answer = lambda call: None
    second = start(rundir, said)
    second.log(2, {"test/loss": 2.0})
    assert second.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0), (2, 2.0)]


def test_a_damaged_cursor_delivers_all_again_and_nothing_shows_twice(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    first = start(rundir, said)
    first.log(1, {"test/loss": 1.0})
    assert first.finish("FINISHED", WAIT_S) == 0
    for damage in (b"", b'{"target": 3}', b'{"target": "http://straw:5000", "records": 99999999}', b"[]", b"\xff"):
        (rundir.path / "tracking" / "cursor.json").write_bytes(damage)
        assert deliver(rundir, SETTINGS, WAIT_S) == 0
    assert len(server.runs) == 1
    assert server.history("test/loss") == [(1, 1.0)]


def test_a_run_that_was_not_tracked_at_first_is_delivered_from_its_events(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    for step in range(4):
        rundir.log(step, 1.0, 1.0, {"test/loss": float(step)})
    rundir.truncate_metrics(2)
    assert deliver(rundir, SETTINGS, WAIT_S) == 0
    assert server.runs == {}
    tracker = start(rundir, said)
    tracker.log(3, {"test/loss": 3.0})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


# ------------------------------------------------------------------------------------------------------- the rest


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    state = {"full": False}
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        if state["full"]:
            real(descriptor, data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(tracking_outbox.os, "write", write)
    yield state
    state["full"] = False


def test_a_full_disk_is_told_once_and_what_it_did_not_take_is_written_later(
    server: StrawServer, rundir: RunDirectory, said: list, full_disk: dict[str, bool]
) -> None:
    tracker = start(rundir, said)
    full_disk["full"] = True
    tracker.log(1, {"test/loss": 1.0})
    tracker.log(2, {"test/loss": 2.0})
    full_disk["full"] = False
    tracker.log(3, {"test/loss": 3.0})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert server.history("test/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(said) == 1 and "No space left on device" in said[0]


def test_a_disk_that_stays_full_counts_its_records_as_undelivered(
    server: StrawServer, rundir: RunDirectory, said: list, full_disk: dict[str, bool]
) -> None:
    tracker = start(rundir, said)
    full_disk["full"] = True
    tracker.log(1, {"test/loss": 1.0})
    assert tracker.finish("FINISHED", WAIT_S) == 2


def test_a_value_that_is_no_number_is_told_and_not_raised(
    server: StrawServer, rundir: RunDirectory, said: list
) -> None:
    tracker = start(rundir, said)
    tracker.log(1, {"test/loss": "many"})  # type: ignore[dict-item]
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert len(said) == 1 and "step 1" in said[0]


def test_a_child_finds_its_parent_even_when_that_one_comes_later(
    server: StrawServer, rundir: RunDirectory, tmp_path: Path, said: list
) -> None:
    server.answer = down
    sweep = start(RunDirectory.create(tmp_path / "runs", "sweep", "", {}), said, run_name="sweep")
    server.wait_for("find")
    server.answer = lambda call: down(call) if threading.current_thread().name.startswith(sweeping) else None
    sweeping = sweep._courier._thread.name
    trial = start(rundir, said, run_name="trial", parent_run_id=sweep.reference)
    server.wait_for("tie")
    assert [run["parent"] for run in server.runs.values()] == [None]
    server.answer = lambda call: None
    assert sweep.finish("FINISHED", WAIT_S) == 0
    trial.log(1, {"test/loss": 1.0})
    assert trial.finish("FINISHED", WAIT_S) == 0
    names = {run["name"]: run_id for run_id, run in server.runs.items()}
    assert server.runs[names["trial"]]["parent"] == names["sweep"]


def test_a_password_in_the_uri_is_written_nowhere(server: StrawServer, rundir: RunDirectory, said: list) -> None:
    def answer(call: str) -> None:
        raise RuntimeError("401 from http://me:secret@straw:5000/api")

    server.answer = answer
    tracker = start(rundir, said, settings=Tracking(uri="http://me:secret@straw:5000"))
    server.wait_for("find", times=2)
    tracker.finish("FINISHED", 0.1)
    assert len(said) == 2
    written = b"".join(path.read_bytes() for path in rundir.path.rglob("*") if path.is_file())
    assert b"secret" not in written + "".join(said).encode()
