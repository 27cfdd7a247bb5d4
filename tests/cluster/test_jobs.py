"""Jobs through a real job server that asks for a token: output, exit codes, stopping, and running inside one."""

from __future__ import annotations

import shlex
import threading
from pathlib import Path

import pytest

from cluster import jobs
from cluster.errors import Unreachable
from cluster.simulated import SimulatedCluster

pytestmark = pytest.mark.multinode

ROOT = Path(__file__).parents[2]


def run(cluster: SimulatedCluster, entrypoint: str, **options: object) -> tuple[jobs.JobOutcome, str]:
    written: list[str] = []
    job_id = jobs.submit(cluster.dashboard_url, entrypoint, **options)  # type: ignore[arg-type]
    return jobs.follow(cluster.dashboard_url, job_id, written.append), "".join(written)


def test_a_job_that_ends_well_gives_its_output_and_zero(with_token: SimulatedCluster) -> None:
    outcome, output = run(with_token, "python -c 'print(1234567 * 2)'", metadata={"name": "small"})
    assert outcome[:2] == ("SUCCEEDED", 0)
    assert outcome.ended
    assert output.count("2469134") == 1
    assert with_token.token not in output


@pytest.mark.parametrize("code", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_job_that_fails_gives_the_exit_code_of_its_command(with_token: SimulatedCluster, code: int) -> None:
    outcome, output = run(with_token, f"python -c 'import sys; print(\"last words\"); sys.exit({code})'")
    assert outcome[:2] == ("FAILED", code)
    assert "last words" in output


@pytest.mark.slow
def test_a_job_has_its_working_folder_and_environment(with_token: SimulatedCluster, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("brought along")
    outcome, output = run(
        with_token,
        'python -c \'import os; print(open("note.txt").read(), os.environ["COLOUR"])\'',
        working_dir=str(tmp_path),
        runtime_env={"env_vars": {"COLOUR": "green"}},
    )
    assert outcome.status == "SUCCEEDED"
    assert "brought along green" in output


@pytest.mark.slow
def test_a_job_can_be_stopped_while_it_is_followed(with_token: SimulatedCluster) -> None:
    url = with_token.dashboard_url
    job_id = jobs.submit(url, "python -uc 'import time; print(\"begun\"); time.sleep(300)'")
    begun, outcomes = threading.Event(), []

    def write(text: str) -> None:
        if "begun" in text.splitlines():
            begun.set()

    thread = threading.Thread(target=lambda: outcomes.append(jobs.follow(url, job_id, write)))
    thread.start()
    assert begun.wait(60)
    assert jobs.status(url, job_id).status == "RUNNING"
    assert jobs.stop(url, job_id)
    thread.join(60)
    assert [outcome.status for outcome in outcomes] == ["STOPPED"]
    assert not jobs.stop(url, job_id)


def test_a_stopped_job_has_time_to_save_its_state(with_token: SimulatedCluster) -> None:
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(5); print('state saved'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('begun')\n"
        "time.sleep(300)"
    )
    url = with_token.dashboard_url
    job_id = jobs.submit(url, f"python -uc {shlex.quote(code)}")
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if "begun" in text.splitlines():
            assert jobs.stop(url, job_id)

    jobs.follow(url, job_id, write)
    assert "state saved" in "".join(written)


def test_inside_a_job_local_joins_the_jobs_cluster(with_token: SimulatedCluster) -> None:
    code = (
        "from cluster.connect import connect, inside_job; from cluster import inventory; "
        "told = []; assert inside_job(); "
        "c = connect(notify=lambda k, f: told.append((k, sorted(f)))); "
        "print(c.__enter__()); print(told); print(len(inventory.of_cluster()), 'nodes'); c.__exit__(None, None, None)"
    )
    outcome, output = run(with_token, f'python -c "{code}"', runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    assert outcome.status == "SUCCEEDED", output
    assert f"Connection(address='{with_token.address}', how='joined')" in output
    assert "[('joined_job', ['address', 'job'])]" in output
    assert "2 nodes" in output


@pytest.mark.slow
def test_auto_finds_the_job_server_of_the_cluster(with_token: SimulatedCluster) -> None:
    job_id = jobs.submit("auto", "true")
    assert jobs.follow("auto", job_id, lambda text: None).status == "SUCCEEDED"


def test_a_job_that_does_not_exist_is_told(with_token: SimulatedCluster) -> None:
    for ask in (jobs.status, jobs.stop, lambda *what: jobs.follow(*what, write=print)):
        with pytest.raises(jobs.JobFailed, match="no-such-job"):
            ask(with_token.dashboard_url, "no-such-job")


def test_a_working_folder_that_does_not_exist_is_told(with_token: SimulatedCluster) -> None:
    with pytest.raises(jobs.JobFailed, match="absent"):
        jobs.submit(with_token.dashboard_url, "true", working_dir="/absent")


@pytest.mark.parametrize("token, given", [(None, "none was sent"), ("ab" * 32, "is not its own")])
def test_without_its_token_the_job_server_refuses(
    two_nodes: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, token: str | None, given: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token or "")
    with pytest.raises(Unreachable) as caught:
        jobs.submit(two_nodes.dashboard_url, "true")
    assert given in caught.value.reason
    assert "RAY_AUTH_TOKEN_PATH" in caught.value.reason
    assert (token or "no token") not in str(caught.value)


def test_a_token_in_a_file_will_do(
    two_nodes: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(two_nodes.token)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert jobs.submit(two_nodes.dashboard_url, "true")
