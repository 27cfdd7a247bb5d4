"""A cluster of two real nodes, a real job server, and the same experiment submitted both ways."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import orchestrator
from cluster.simulated import SimulatedCluster
from orchestrator.life import RunResult
from orchestrator.rundir import RunDirectory, find_runs

pytestmark = pytest.mark.multinode

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SMALL = ["strategy.algorithm.rounds=2", "cluster.workers=3", "cluster.placement=spread"]


def ours(cluster: SimulatedCluster, file: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "submit", file, *overrides, "--address", cluster.dashboard_url]


def rays(cluster: SimulatedCluster, *entrypoint: str) -> list[str]:
    address = ["--address", cluster.dashboard_url]
    return [str(BIN / "ray"), "job", "submit", *address, "--working-dir", ".", "--", *entrypoint]


def submit(command: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # A PYTHONPATH of the checkout does what installing on every node does; see tests/conftest.py.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    del environment["RAY_ADDRESS"]  # Ray's own command prefers it to --address
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def alone(tmp_path: Path, file: str) -> RunResult:
    """The same experiment inside this process."""
    overrides = ["strategy.algorithm.rounds=2", "cluster.workers=0", "tracking.enabled=false"]
    return orchestrator.run(ROOT / file, overrides=overrides, root=tmp_path / "alone", quiet=True)


def the_run(root: Path) -> RunDirectory:
    (directory,) = find_runs(root)
    return directory


def in_mlflow(root: Path, run_id: str) -> tuple[str, dict[tuple[str, int], float]]:
    with sqlite3.connect(root / "mlflow.db") as database:
        (status,) = database.execute("select status from runs where run_uuid = ?", (run_id,)).fetchone()
        rows = database.execute("select key, step, value from metrics where run_uuid = ?", (run_id,)).fetchall()
    return status, {(key, step): value for key, step, value in rows}


def assert_whole(root: Path, cluster: SimulatedCluster, want: RunResult) -> None:
    directory = the_run(root)
    manifest = directory.manifest
    assert (manifest["status"], manifest["step"]) == ("FINISHED", 2)
    assert (directory.path / "report.html").stat().st_size > 10_000
    status, metrics = in_mlflow(root, manifest["mlflow"]["run_id"])
    assert status == "FINISHED"
    table = [(f"{row['scope']}/{row['name']}", row["step"], row["value"]) for row in directory.metrics().to_pylist()]
    assert len(table) > 10
    assert {(name, step): value for name, step, value in table} == metrics
    got = RunResult(directory.path, "FINISHED", 2, {}).weights()
    assert got.keys() == want.weights().keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.weights().items())
    assert len([event for event in directory.events() if event["kind"] == "worker_started"]) == 3  # 2 CPUs a node
    held = [path for path in directory.path.rglob("*") if path.is_file()]
    assert not any(cluster.token.encode() in path.read_bytes() for path in held)


def test_submitted_both_ways_a_run_succeeds_with_the_bits_of_one_process(
    tmp_path: Path, with_token: SimulatedCluster
) -> None:
    file = "examples/quickstart.yaml"
    want = alone(tmp_path, file)
    first = submit(ours(with_token, file, *SMALL, "--root", str(tmp_path / "ours")))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "SUCCEEDED" in first.stderr
    second = submit(rays(with_token, "orchestrator", "run", file, *SMALL, "--root", str(tmp_path / "rays")))
    assert second.returncode == 0, second.stdout + second.stderr
    assert "succeeded" in second.stdout.lower()
    for root, done in ((tmp_path / "ours", first), (tmp_path / "rays", second)):
        assert str(the_run(root).path) in done.stdout + done.stderr
        assert with_token.token not in done.stdout + done.stderr
        assert_whole(root, with_token, want)


@pytest.mark.slow
def test_a_users_own_code_reaches_every_node(tmp_path: Path, with_token: SimulatedCluster) -> None:
    file = "examples/own_code.yaml"
    want = alone(tmp_path, file)
    done = submit(ours(with_token, file, *SMALL, "--root", str(tmp_path / "job")))
    assert done.returncode == 0, done.stdout + done.stderr
    assert_whole(tmp_path / "job", with_token, want)
    joined = [*SMALL, f"cluster.address={with_token.client_address}"]
    command = [sys.executable, "-m", "orchestrator", "run", file, *joined, "--root", str(tmp_path / "client")]
    done = submit(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_whole(tmp_path / "client", with_token, want)


@pytest.mark.parametrize(
    "override, code, said",
    [
        ("model.kwargs.width=-1", 2, "width"),
        pytest.param("cluster.workers=9", 3, "4 of 9 workers fit", marks=pytest.mark.slow),
        pytest.param("strategy.client.optimizer.lr=1e30", 4, "NotFinite", marks=pytest.mark.slow),
    ],
)
def test_a_job_that_fails_gives_the_exit_code_of_the_run(
    tmp_path: Path, with_token: SimulatedCluster, override: str, code: int, said: str
) -> None:
    done = submit(ours(with_token, "examples/own_code.yaml", *SMALL, override, "--root", str(tmp_path)))
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stdout + done.stderr
