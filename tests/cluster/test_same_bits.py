"""The same seed gives the same run, bit for bit, whatever runs it and whatever is killed meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import orchestrator
from orchestrator.rundir import RunDirectory
from tests.cluster.drivers import start_driver, wait_for_step


def config(root: Path, **changes: Any) -> dict[str, Any]:
    """A federated run of a CNN with dropout: convolutions, random masks and uneven clients."""
    return {
        "name": "bits",
        "seed": 5,
        "data": {"name": "digits", "partition": {"kind": "dirichlet", "clients": 23, "alpha": 0.5}},
        "model": {"name": "cnn", "filters": [4, 8], "dense": 16, "dropout": 0.25},
        "strategy": {
            "algorithm": {"name": "fedavg", "rounds": changes.pop("rounds", 4), "cohort": 9},
            "client": {"epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
            "behaviour": {"speed": {"kind": "lognormal", "sigma": 0.5}},
        },
        "cluster": {"workers": 0, "resources_per_worker": {"CPU": 0.5}, **changes.pop("cluster", {})},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 1, **changes.pop("checkpoint", {})},
        "storage": {"root": str(root)},
        **changes,
    }


def same(a: Any, b: Any) -> None:
    left, right = a.weights(), b.weights()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    figures = [
        [
            (row["step"], row["virtual_s"], row["name"], row["value"])
            for row in run.history().to_pylist()
            if row["scope"] != "time"
        ]
        for run in (a, b)
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) > 20


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run in this process, without Ray."""
    return orchestrator.run(config(tmp_path_factory.mktemp("reference")), quiet=True)


def test_a_run_repeated_is_the_same_run(reference: Any, tmp_path: Path) -> None:
    same(reference, orchestrator.run(config(tmp_path), quiet=True))


def test_another_seed_is_another_run(reference: Any, tmp_path: Path) -> None:
    other = orchestrator.run(config(tmp_path), overrides=["seed=6"], quiet=True)
    assert any(not torch.equal(reference.weights()[name], tensor) for name, tensor in other.weights().items())


def test_several_threads_in_the_calling_process_do_not_change_the_bits(reference: Any, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        same(reference, orchestrator.run(config(tmp_path), quiet=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.ray
@pytest.mark.parametrize("workers", [*(pytest.param(few, marks=pytest.mark.slow) for few in (1, 2)), 4])
def test_any_number_of_ray_workers_gives_the_bits_of_one_process(
    reference: Any, tmp_path: Path, workers: int, local_ray: str
) -> None:
    same(reference, orchestrator.run(config(tmp_path, cluster={"workers": workers, "address": local_ray}), quiet=True))


@pytest.mark.ray
def test_a_worker_killed_in_the_middle_of_a_round_changes_nothing(
    reference: Any, tmp_path: Path, local_ray: str
) -> None:
    from orchestrator.life import Trial

    killed = []

    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 1:
            pid = next(e["pid"] for e in directory.events() if e["kind"] == "worker_started")
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return False

    settings = config(tmp_path, cluster={"workers": 2, "address": local_ray})
    result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill_one))
    same(reference, result)
    kinds = [event["kind"] for event in RunDirectory.open(result.run_dir).events()]
    assert killed and "worker_lost" in kinds


@pytest.mark.parametrize("every", [1, 3])
def test_a_driver_killed_outright_resumes_to_the_bits_of_the_uninterrupted_run(tmp_path: Path, every: int) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = orchestrator.run(config(tmp_path / "a", rounds=12), quiet=True)
    process = start_driver(tmp_path, config(tmp_path / "b", rounds=12, checkpoint={"every": every}))
    directory = wait_for_step(tmp_path / "b", 4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert directory.manifest["status"] == "RUNNING"
    assert directory.manifest["step"] < 12, "the driver finished before it was killed"
    result = orchestrator.run(resume=directory.path, quiet=True)
    same(whole, result)
    assert RunDirectory.open(directory.path).manifest["status"] == "FINISHED"


def test_ctrl_c_saves_the_run_as_killed_and_resume_ends_as_if_nothing_happened(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = orchestrator.run(config(tmp_path / "a", rounds=12), quiet=True)
    process = start_driver(tmp_path, config(tmp_path / "b", rounds=12, checkpoint={"every": 100}))
    directory = wait_for_step(tmp_path / "b", 3, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"orchestrator resume {directory.path}" in output
    manifest = RunDirectory.open(directory.path).manifest
    assert manifest["status"] == "KILLED"
    assert 3 <= manifest["step"] < 12
    assert (directory.path / "report.html").is_file()
    same(whole, orchestrator.run(resume=directory.path, quiet=True))


def test_a_run_that_is_going_on_cannot_be_resumed_by_a_second_process(tmp_path: Path) -> None:
    process = start_driver(tmp_path, config(tmp_path / "runs", rounds=500))
    try:
        directory = wait_for_step(tmp_path / "runs", 1, process)
        with pytest.raises(orchestrator.ResumeError, match=str(process.pid)):
            orchestrator.run(resume=directory.path, quiet=True)
    finally:
        psutil.Process(process.pid).terminate()
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_finished_run_can_be_given_more_rounds(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    longer = orchestrator.run(config(tmp_path / "a", rounds=6), quiet=True)
    short = orchestrator.run(config(tmp_path / "b", rounds=4), quiet=True)
    from orchestrator.run import resume_run

    same(longer, resume_run(short.run_dir, overrides=["strategy.algorithm.rounds=6"], quiet=True))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    whole = orchestrator.run(config(tmp_path / "a", rounds=6), quiet=True)
    short = orchestrator.run(config(tmp_path / "b", rounds=4), quiet=True)
    path = short.run_dir / "checkpoints" / "step-000004" / "model.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    from orchestrator.run import resume_run

    same(whole, resume_run(short.run_dir, overrides=["strategy.algorithm.rounds=6"], quiet=True))


def test_a_resume_that_would_change_what_was_computed_is_refused(tmp_path: Path) -> None:
    from orchestrator.run import resume_run

    short = orchestrator.run(config(tmp_path, rounds=1), quiet=True)
    with pytest.raises(orchestrator.ResumeError, match=r"seed=9 would change"):
        resume_run(short.run_dir, overrides=["seed=9"], quiet=True)
