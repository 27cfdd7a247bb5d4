"""Pipelines as whole runs: the same bits on a gang of any size, and when stages, drivers and nodes are lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import orchestrator
from orchestrator.checkpoints import CheckpointStore
from orchestrator.life import Trial
from orchestrator.run import resume_run
from orchestrator.rundir import RunDirectory
from tests.cluster.drivers import start_driver, wait_for_step
from tests.cluster.pipeline_runs import config, same


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run in this process."""
    return orchestrator.run(config(tmp_path_factory.mktemp("reference")), quiet=True)


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run so long that a stage dies in the middle of it: ranks are some steps ahead of the driver."""
    return orchestrator.run(config(tmp_path_factory.mktemp("reference"), steps=30), quiet=True)


@pytest.mark.parametrize("stages", [1, 3])
def test_any_number_of_stages_gives_the_same_bits(reference: Any, tmp_path: Path, stages: int) -> None:
    same(reference, orchestrator.run(config(tmp_path, stages=stages), quiet=True))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("stages", [2, 3])
def test_a_gang_gives_the_bits_of_one_process(reference: Any, tmp_path: Path, stages: int, local_ray: str) -> None:
    settings = config(tmp_path, stages=stages, cluster={"workers": stages, "address": local_ray})
    same(reference, orchestrator.run(settings, quiet=True))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    ["1f1b", "interleaved", "zero-bubble", "zero-bubble-v"],
)
def test_every_schedule_runs_on_a_gang_as_it_does_in_one_process(tmp_path: Path, schedule: str, local_ray: str) -> None:
    changes = {"schedule": schedule, "steps": 6, "recompute": "except-last", "replicas": 2, "accumulate": 2}
    here = orchestrator.run(config(tmp_path / "a", **changes), quiet=True)
    there = orchestrator.run(
        config(tmp_path / "b", **changes, cluster={"workers": 4, "address": local_ray}), quiet=True
    )
    same(here, there)


@pytest.mark.ray
def test_a_stage_killed_outright_is_started_again_and_ends_with_the_same_bits(
    long_reference: Any, tmp_path: Path, local_ray: str
) -> None:
    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 6 and not killed:
            pid = next(e["pid"] for e in directory.events() if e["kind"] == "worker_started")
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        return False

    killed: list[int] = []
    settings = config(tmp_path, steps=30, cluster={"workers": 2, "address": local_ray})
    result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill_one))
    same(long_reference, result)
    events = list(RunDirectory.open(result.run_dir).events())
    (restart,) = [event for event in events if event["kind"] == "gang_restarted"]
    assert restart["from_step"] >= 4 and restart["from_step"] % 4 == 0 and restart["worker"] in ("rank 0", "rank 1")
    again = next(e["time"] for e in events if e["kind"] == "worker_started" and e["time"] > restart["time"])
    assert again - restart["time"] < 60


@pytest.mark.ray
@pytest.mark.slow
def test_stages_lost_more_often_than_allowed_end_the_run_with_a_way_on(tmp_path: Path, local_ray: str) -> None:
    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 6:
            os.kill(next(e["pid"] for e in directory.events() if e["kind"] == "worker_started"), signal.SIGKILL)
        return False

    settings = config(tmp_path, steps=60, restarts=0, cluster={"workers": 2, "address": local_ray})
    with pytest.raises(orchestrator.WorkerError, match="killed") as caught:
        orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill_one))
    assert "orchestrator resume" in str(caught.value)
    manifest = RunDirectory.open(tmp_path / "run").manifest
    assert manifest["status"] == "FAILED" and manifest["error"]["worker"].startswith("rank")


@pytest.mark.ray
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_layer_that_cannot_take_its_input_is_named(tmp_path: Path, workers: int, local_ray: str) -> None:
    settings = config(
        tmp_path, partition=[1, 3], cluster={"workers": workers, "address": local_ray if workers else "local"}
    )
    settings["model"] = {"target": "tests.cluster.toy_pipeline:breaks_after_a_while"}
    with pytest.raises(orchestrator.OrchestratorError, match=r"layer 2 \(2, Breaks\).*33") as caught:
        orchestrator.run(settings, quiet=True)
    assert "out of patience" in str(caught.value)


def test_a_search_stops_a_pipeline_with_its_state(tmp_path: Path) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 6)
    result = orchestrator.run(config(tmp_path), quiet=True, trial=trial)
    assert result.status == "STOPPED" and result.step == 6
    assert [p.name for p in (result.run_dir / "checkpoints").iterdir()][-1:] != []


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_stops_a_gang_with_its_state(tmp_path: Path, local_ray: str) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 6)
    settings = config(tmp_path, steps=4000, cluster={"workers": 2, "address": local_ray})
    result = orchestrator.run(settings, quiet=True, trial=trial)
    assert result.status == "STOPPED" and 6 <= result.step < 4000
    assert (result.run_dir / "checkpoints" / f"step-{result.step:06d}" / "checkpoint.json").is_file()


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_driver_that_is_ended_resumes_with_another_number_of_stages(tmp_path: Path, number: int) -> None:
    long = {"steps": 3000, "learning_rate": {"name": "constant"}}
    process = start_driver(tmp_path, config(tmp_path / "runs", **long, cluster={"workers": 2}))
    directory = wait_for_step(tmp_path / "runs", 9, process)
    ranks = [event["pid"] for event in directory.events() if event["kind"] == "worker_started"]
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=90)
    manifest = RunDirectory.open(directory.path).manifest
    if number == signal.SIGINT:
        assert process.returncode == 130, output
        assert f"orchestrator resume {directory.path}" in output
        assert manifest["status"] == "KILLED"
    deadline = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in ranks) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in ranks)
    at = max(int(path.name[5:]) for path in (directory.path / "checkpoints").iterdir() if path.name.startswith("step-"))
    assert at >= manifest["step"] if number == signal.SIGINT else at >= 8
    last = at + 6
    changes = [f"strategy.steps={last}", "strategy.stages=3", "cluster.workers=0"]
    got = resume_run(directory.path, overrides=changes, quiet=True)
    want = orchestrator.run(config(tmp_path / "whole", steps=last), quiet=True)
    assert all(torch.equal(got.weights()[name], tensor) for name, tensor in want.weights().items())


def test_more_steps_are_refused_where_the_learning_rate_depends_on_them(tmp_path: Path) -> None:
    short = orchestrator.run(config(tmp_path, steps=2, learning_rate={"name": "cosine"}), quiet=True)
    with pytest.raises(orchestrator.ResumeError, match="cosine"):
        resume_run(short.run_dir, overrides=["strategy.steps=4"], quiet=True)


@pytest.mark.slow
def test_a_run_is_resumed_with_optimizer_states_shared_out(tmp_path: Path) -> None:
    small: dict[str, Any] = {"replicas": 2, "steps": 6, "gradient_noise": {"eta": 0.001}}
    whole = orchestrator.run(config(tmp_path, **small), quiet=True)
    trial = Trial(tmp_path / "cut", 0, {}, on_step=lambda report, directory: report.state.step == 4)
    cut = orchestrator.run(config(tmp_path, **small), quiet=True, trial=trial)
    ended = resume_run(cut.run_dir, overrides=["strategy.shard_optimizer=true"], quiet=True)
    assert (cut.step, ended.step) == (4, 6)
    assert all(torch.equal(ended.weights()[name], tensor) for name, tensor in whole.weights().items())


@pytest.mark.ray
@pytest.mark.slow
def test_shared_out_optimizer_states_and_noise_make_the_bits_and_checkpoints_of_one_process(
    tmp_path: Path, local_ray: str
) -> None:
    noise = {"eta": 0.001, "gamma": 0.55}
    changes: dict[str, Any] = {"replicas": 2, "clip_value": 0.1, "gradient_noise": noise}
    changes["optimizer"] = {"name": "lamb", "lr": 0.02, "kwargs": {"exclude": "bias"}}
    gang = {"workers": 4, "address": local_ray}
    here = orchestrator.run(config(tmp_path / "a", **changes), quiet=True)
    there = orchestrator.run(config(tmp_path / "b", **changes, shard_optimizer=True, cluster=gang), quiet=True)
    same(here, there)
    one, other = (CheckpointStore(run.run_dir / "checkpoints", 3).newest() for run in (here, there))
    assert one is not None and other is not None and one.step == other.step == 12
    assert one.server.keys() == other.server.keys() >= {"optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step"}
    for tree, tensors in one.server.items():
        assert all(torch.equal(other.server[tree][name], tensor) for name, tensor in tensors.items()), tree
