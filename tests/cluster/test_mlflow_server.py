"""The tracker against real MLflow: SQLite in the run root, and a server that is killed, restarted, slow or absent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import tracking_courier, tracking_server
from orchestrator.config.schema import Tracking
from orchestrator.rundir import RunDirectory
from orchestrator.tracking import Tracker, deliver

START_S = 90.0
WAIT_S = 60.0
PROJECT = Path(__file__).parents[2]


class MlflowServer:
    """A real `mlflow server` with one worker, in a process group of its own, on a port that stays the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.database = f"sqlite:///{folder}/server.db"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self.database]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **quiet}, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            log_text = (self.folder / "server.log").read_text()
            assert self.process.poll() is None, f"mlflow server ended:\n{log_text}"
            assert time.monotonic() < deadline, f"mlflow server did not start in {START_S} s:\n{log_text}"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL the server and its workers, as a power cut would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(WAIT_S)
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    mlflow_server = MlflowServer(tmp_path_factory.mktemp("server"))
    mlflow_server.start()
    yield mlflow_server
    mlflow_server.kill()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[MlflowServer]:
    """A server of one test's own, which may kill it and start it again."""
    (tmp_path / "server").mkdir()
    mlflow_server = MlflowServer(tmp_path / "server")
    try:
        mlflow_server.start()
        yield mlflow_server
    finally:
        mlflow_server.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry often, so that the test is short."""
    for name in ("PAUSE_S", "LONGEST_PAUSE_S", "FIRST_RETRY_S", "LAST_RETRY_S", "RETRY_WHEN_ENDING_S"):
        monkeypatch.setattr(tracking_courier, name, 0.2)


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def start(rundir: RunDirectory, said: list[str], uri: str | None, **changed: Any) -> Tracker:
    given: dict[str, Any] = {"experiment_name": "digits", "run_name": rundir.path.name, "params": {"lr": "0.1"}}
    given |= {"tags": {"mlflow.source.git.commit": "abc123", "versions.torch": "2.13"}, "notify": said.append}
    return Tracker.open(Tracking(uri=uri), rundir, **{**given, **changed})


def new_run(tmp_path: Path, name: str = "digits") -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", name, "seed: 1\n", {})


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, name))


def wait_until(what: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def run_id_of(rundir: RunDirectory) -> str:
    return str(rundir.manifest["mlflow"]["run_id"])


# ------------------------------------------------------------------------------------------------------- a server


@pytest.mark.usefixtures("impatient")
def test_a_server_killed_in_the_middle_of_a_run_and_started_again_has_every_step_exactly_once(
    mortal: MlflowServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rundir, said = new_run(tmp_path), list[str]()
    tracker = start(rundir, said, mortal.uri)
    for step in range(40):
        tracker.log(step, {"test/accuracy": step / 40, "test/loss": float("nan") if step == 7 else 1.0})
    wait_until(lambda: tracker._courier.num_pending() == 0)

    mortal.kill()
    for step in range(40, 80):
        tracker.log(step, {"test/accuracy": step / 40, "test/loss": 1.0})
    wait_until(lambda: len(said) == 1)
    assert said[0].startswith(f"MLflow at {mortal.uri} does not answer (")

    mortal.start()
    for step in range(80, 100):
        tracker.log(step, {"test/accuracy": step / 40, "test/loss": 1.0})
    (rundir.path / "report.html").write_text("<html>report</html>")
    tracker.artifact(rundir.path / "report.html")
    assert tracker.finish("FINISHED", WAIT_S) == 0

    assert len(said) == 2 and "is back" in said[1]
    run_id = run_id_of(rundir)
    assert history(mortal.uri, run_id, "test/accuracy") == [(step, step / 40) for step in range(100)]
    assert [step for step, _ in history(mortal.uri, run_id, "test/loss")] == list(range(100))
    run = client(mortal.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    assert (run.data.tags["mlflow.source.git.commit"], run.data.tags["versions.torch"]) == ("abc123", "2.13")
    names = {file.path for file in client(mortal.uri).list_artifacts(run_id)}
    assert names == {"config.resolved.yaml", "report.html"}
    assert [event["kind"] for event in rundir.events() if "tracking" in event["kind"]] == [
        "tracking_down",
        "tracking_up",
    ]


@pytest.mark.usefixtures("impatient")
def test_killed_while_it_is_answering_nothing_is_lost_and_nothing_doubled(
    mortal: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_courier, "MAX_VALUES", 1)  # a request for each step, so that the kill cuts one off
    monkeypatch.setattr(tracking_courier, "PAUSE_S", 0.0)
    rundir, said = new_run(tmp_path), list[str]()
    tracker = start(rundir, said, mortal.uri)
    for step in range(60):
        tracker.log(step, {"test/loss": float(step)})
    wait_until(lambda: 0 < tracker._courier.num_pending() < 50)
    mortal.kill()
    mortal.start()
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert history(mortal.uri, run_id_of(rundir), "test/loss") == [(step, float(step)) for step in range(60)]


@pytest.mark.usefixtures("impatient")
def test_a_resume_goes_on_in_the_same_run_and_trained_again_steps_show_once(
    server: MlflowServer, tmp_path: Path
) -> None:
    rundir, said = new_run(tmp_path), list[str]()
    first = start(rundir, said, server.uri)
    for step in range(10):
        first.log(step, {"test/loss": step / 3, "time/round_s": 1.0})
    assert first.finish("KILLED", WAIT_S) == 0
    run_id = run_id_of(rundir)
    assert client(server.uri).get_run(run_id).info.status == "KILLED"

    second = start(rundir, said, server.uri, params={"lr": "0.1", "rounds": "15"})
    wait_until(lambda: client(server.uri).get_run(run_id).info.status == "RUNNING")
    for step in range(5, 15):
        second.log(step, {"test/loss": step / 3, "time/round_s": 2.0})
    assert second.finish("FINISHED", WAIT_S) == 0
    assert run_id_of(rundir) == run_id
    assert history(server.uri, run_id, "test/loss") == [(step, step / 3) for step in range(15)]
    assert [step for step, _ in history(server.uri, run_id, "time/round_s")] == list(range(15))
    assert client(server.uri).get_run(run_id).info.status == "FINISHED"
    assert said == []


@pytest.mark.usefixtures("impatient")
def test_the_same_outbox_delivered_twice_changes_nothing_on_the_server(server: MlflowServer, tmp_path: Path) -> None:
    rundir = new_run(tmp_path)
    tracker = start(rundir, [], server.uri)
    for step in range(5):
        tracker.log(step, {"test/loss": float("nan") if step == 3 else 1e-300 * step, "test/accuracy": float("inf")})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    run_id = run_id_of(rundir)
    (rundir.path / "tracking" / "cursor.json").unlink()
    assert deliver(rundir, Tracking(uri=server.uri), WAIT_S) == 0
    assert run_id_of(rundir) == run_id
    assert [step for step, _ in history(server.uri, run_id, "test/loss")] == list(range(5))
    assert [step for step, _ in history(server.uri, run_id, "test/accuracy")] == list(range(5))


@pytest.mark.usefixtures("impatient")
def test_a_run_deleted_on_the_server_is_written_anew(server: MlflowServer, tmp_path: Path) -> None:
    rundir, said = new_run(tmp_path), list[str]()
    tracker = start(rundir, said, server.uri)
    tracker.log(1, {"test/loss": 1.0})
    wait_until(lambda: tracker._courier.num_pending() == 0)
    deleted = run_id_of(rundir)
    client(server.uri).delete_run(deleted)
    tracker.log(2, {"test/loss": 2.0})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    assert run_id_of(rundir) != deleted
    assert history(server.uri, run_id_of(rundir), "test/loss") == [(1, 1.0), (2, 2.0)]
    assert any("no longer on MLflow" in text for text in said)


@pytest.mark.usefixtures("impatient")
def test_a_trial_is_a_child_of_its_sweep(server: MlflowServer, tmp_path: Path) -> None:
    sweep_dir = new_run(tmp_path, "sweep")
    sweep = start(sweep_dir, [], server.uri)
    trial_dir = new_run(tmp_path, "trial")
    trial = start(trial_dir, [], server.uri, parent_run_id=sweep.reference)
    assert sweep.finish("FINISHED", WAIT_S) == 0
    trial.log(1, {"test/loss": 1.0})
    assert trial.finish("FINISHED", WAIT_S) == 0
    tags = client(server.uri).get_run(run_id_of(trial_dir)).data.tags
    assert tags["mlflow.parentRunId"] == run_id_of(sweep_dir)


def test_the_variable_is_honoured_and_a_value_mlflow_refuses_is_put_aside(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    rundir, said = new_run(tmp_path), list[str]()
    tracker = start(rundir, said, None, params={"a//b": "MLflow takes no such name", "long": "x" * 9000, "good": "1"})
    assert tracker.finish("FINISHED", WAIT_S) == 0
    params = client(server.uri).get_run(run_id_of(rundir)).data.params
    assert (params["good"], len(params["long"]), set(params)) == ("1", 6000, {"good", "long"})
    assert len(said) == 1 and "'a//b'" in said[0]


# ----------------------------------------------------------------------------------------- a server that is no good


def test_a_server_that_takes_calls_and_never_answers_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_server, "CALL_TIMEOUT_S", 1)
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        rundir, said = new_run(tmp_path), list[str]()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tracker = start(rundir, said, uri)
        for step in range(20):
            tracker.log(step, {"test/loss": 1.0})
        wait_until(lambda: said)
        assert "does not answer (no answer in time)" in said[0]
        assert tracker.finish("FINISHED", 0.1) == 25
        tracker._courier._thread.join(WAIT_S)
    # Later the run is delivered somewhere else.
    assert deliver(rundir, Tracking(uri=f"sqlite:///{tmp_path}/later.db"), WAIT_S) == 0
    assert len(history(f"sqlite:///{tmp_path}/later.db", run_id_of(rundir), "test/loss")) == 20


def test_what_the_user_has_set_for_mlflow_wins_and_our_limits_do_not_outlive_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking_server._import()
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    before = MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()
    with tracking_server._defaults(3), tracking_server._defaults(3):
        assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == (3, 0)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "17")
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 17
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert (MLFLOW_HTTP_REQUEST_TIMEOUT.get(), MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) == before


# ----------------------------------------------------------------------------------------------------- no server


QUIET_RUN = """
import os, sys, threading
from pathlib import Path
from orchestrator.config.schema import Tracking
from orchestrator.rundir import RunDirectory
from orchestrator.tracking import Tracker
before = dict(os.environ)
rundir = RunDirectory.create(Path(sys.argv[1]), "digits", "seed: 1", {})
tracker = Tracker.open(Tracking(), rundir, experiment_name="digits", run_name=sys.argv[2], params={"a": "1"}, tags={},
                       notify=lambda text: print("SAID", text))
for step in range(20):
    tracker.log(step, {"test/loss": 1.0})
assert tracker.finish("FINISHED", 60) == 0
assert dict(os.environ) == before, "environment variables leaked"
assert [thread.name for thread in threading.enumerate()] == ["MainThread"]
from mlflow.telemetry import get_telemetry_client
assert get_telemetry_client() is None, "MLflow would phone home"
"""


def test_processes_that_open_a_fresh_database_together_all_succeed_in_silence(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    marks = ("PYTEST", "CI", "GITHUB_ACTIONS", "MLFLOW")  # some of them would turn MLflow's telemetry off by themselves
    environment = {name: value for name, value in os.environ.items() if not name.startswith(marks)}
    environment["PYTHONPATH"] = str(PROJECT)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", QUIET_RUN, str(tmp_path / "runs"), f"run{number}"],
            cwd=tmp_path / "work",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(3)
    ]
    answers = [(process.communicate(timeout=WAIT_S)[0], process.returncode) for process in processes]
    assert answers == [("", 0)] * 3
    assert list((tmp_path / "work").iterdir()) == [], "nothing may be left in the user's folder"
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    experiment = client(uri).get_experiment_by_name("digits")
    runs = client(uri).search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["run0", "run1", "run2"]
    assert all(len(history(uri, run.info.run_id, "test/loss")) == 20 for run in runs)
    assert experiment.artifact_location == (tmp_path / "runs" / "mlartifacts" / "digits").as_uri()


DIES_MIDWAY = """
import os
from sqlalchemy import event
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "before_cursor_execute")
def die(connection, cursor, statement, *rest):
    if "CREATE TABLE trace_info" in statement:
        os.kill(os.getpid(), 9)
"""


def test_a_process_killed_while_it_makes_the_database_leaves_none_that_is_half_made(tmp_path: Path) -> None:
    """MLflow's own half-made database could never be opened again: "table trace_info already exists"."""
    command = [sys.executable, "-c", DIES_MIDWAY + QUIET_RUN, str(tmp_path / "runs"), "run"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    assert subprocess.run(command, env=environment, timeout=WAIT_S, check=False).returncode == -signal.SIGKILL
    (path,) = (folder for folder in (tmp_path / "runs").iterdir() if (folder / "manifest.json").exists())
    assert not (tmp_path / "runs" / "mlflow.db").exists()
    assert deliver(RunDirectory.open(path), Tracking(), WAIT_S) == 0
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert len(history(uri, run_id_of(RunDirectory.open(path)), "test/loss")) == 20
    assert list((tmp_path / "runs").glob(".*")) == []


def test_a_driver_killed_before_anything_was_delivered_is_delivered_later(tmp_path: Path) -> None:
    script = QUIET_RUN.replace("assert tracker.finish", "os.kill(os.getpid(), 9)\nassert tracker.finish")
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "runs"), "run"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        timeout=WAIT_S,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (path,) = (folder for folder in (tmp_path / "runs").iterdir() if (folder / "manifest.json").exists())
    assert deliver(RunDirectory.open(path), Tracking(), WAIT_S) == 0
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert len(history(uri, run_id_of(RunDirectory.open(path)), "test/loss")) == 20
