"""Local learning on a gang: the bits of one process, also when a worker is killed, and how it is stopped."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.checkpoints import CheckpointStore
from orchestrator.life import Trial
from orchestrator.report.timeline import measured
from orchestrator.rundir import RunDirectory

pytestmark = pytest.mark.ray


def config(root: Path, workers: int = 2, address: str = "local", **strategy: Any) -> dict[str, Any]:
    """A network with BatchNorm and dropout, an optimizer with a memory, and a rate that changes."""
    return {
        "name": "local",
        "seed": 5,
        "data": {"target": "tests.contract.local_runs:data"},
        "model": {"target": "tests.contract.local_runs:toy"},
        "strategy": {
            "kind": "local-learning", "modules": 2, "steps": 40, "batch_size": 7,
            "optimizer": {"name": "adamw", "lr": 0.01}, "learning_rate": {"name": "cosine", "warmup_steps": 5},
            **strategy,
        },
        "cluster": {"workers": workers, "address": address, "resources_per_worker": {"CPU": 0.5}},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 10, "batch_size": 6},
        "storage": {"root": str(root)},
    }  # fmt: skip


def state(run: Any) -> dict[str, torch.Tensor]:
    """The whole state of the last checkpoint: model, auxiliary networks, counters, optimizers' memories."""
    newest = CheckpointStore(run.run_dir / "checkpoints", 3).newest()
    assert newest is not None and newest.model is not None
    trees = {"model": newest.model, **newest.server}
    return {f"{tree}/{name}": tensor for tree, tensors in trees.items() for name, tensor in tensors.items()}


def same(a: Any, b: Any) -> None:
    left, right = state(a), state(b)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    figures = [
        [(row["step"], row["name"], row["value"]) for row in run.history().to_pylist() if row["scope"] in scopes]
        for run, scopes in ((a, ("train", "test")), (b, ("train", "test")))
    ]
    assert sorted(figures[0]) == sorted(figures[1]) and len(figures[0]) == 40 + 2 * 5


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run in this process."""
    return orchestrator.run(config(tmp_path_factory.mktemp("reference"), workers=0), quiet=True)


@pytest.mark.parametrize(
    "kills", [pytest.param(False, id="whole", marks=pytest.mark.slow), pytest.param(True, id="killed")]
)
def test_a_gang_has_the_bits_of_one_process_and_tells_of_every_worker_also_when_one_is_killed_outright(
    kills: bool, reference: Any, tmp_path: Path, local_ray: str
) -> None:
    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if kills and report.state.step == 6 and not killed:
            killed.append([event["pid"] for event in directory.events() if event["kind"] == "worker_started"][-1])
            os.kill(killed[0], signal.SIGKILL)
        return False

    killed: list[int] = []
    settings = config(tmp_path, address=local_ray)
    result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill_one))
    same(reference, result)
    events = list(RunDirectory.open(result.run_dir).events())
    restarts = [event["from_step"] for event in events if event["kind"] == "gang_restarted"]
    assert len(restarts) == kills and all(step >= 4 and step % 4 == 0 for step in restarts)
    told = {f"{row['scope']}/{row['name']}" for row in result.history().to_pylist()}
    assert {f"modules/{what}_{number}" for what in ("loss", "saved_bytes") for number in range(2)} <= told
    assert {"workers/memory_bytes_0", "workers/memory_bytes_1", "comm/boundary_bytes"} <= told
    timelines = [event for event in events if event["kind"] == "timeline"]
    assert [event["step"] for event in timelines] == [10, 20, 30, 40]
    drawn = measured(timelines[-1])
    assert [[(span.kind, span.microbatch) for span in spans] for spans in drawn.stages] == [
        [(kind, batch) for batch in range(10) for kind in "FB"]
    ] * 2


@pytest.mark.slow
def test_a_wish_to_stop_travels_down_with_the_batches_and_leaves_a_whole_state(tmp_path: Path, local_ray: str) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 6)
    settings = config(tmp_path, address=local_ray, steps=4000, queue=3)
    settings["checkpoint"]["every"] = 4000  # so that the state is the stop's own
    result = orchestrator.run(settings, quiet=True, trial=trial)
    assert result.status == "STOPPED" and 6 <= result.step < 4000
    assert (result.run_dir / "checkpoints" / f"step-{result.step:06d}" / "checkpoint.json").is_file()
    assert "test/accuracy" in result.metrics


@pytest.mark.slow
def test_replicas_of_a_worker_have_the_bits_of_one_process_also_when_one_is_killed(
    tmp_path: Path, local_ray: str
) -> None:
    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 6 and not killed:
            killed.append([event["pid"] for event in directory.events() if event["kind"] == "worker_started"][-1])
            os.kill(killed[0], signal.SIGKILL)
        return False

    killed: list[int] = []
    settings = config(tmp_path / "one", workers=0, replicas={0: 2, 1: 3})
    here = orchestrator.run(settings, quiet=True)
    settings = config(tmp_path, workers=5, address=local_ray, replicas={0: 2, 1: 3})
    there = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=kill_one))
    assert [event["kind"] for event in RunDirectory.open(there.run_dir).events()].count("gang_restarted") == 1
    left, right = state(here), state(there)
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    assert "1 (3 processes)" in (there.run_dir / "report.html").read_text()


@pytest.mark.slow
def test_a_wish_to_stop_reaches_the_replicas_that_did_not_hear_it(tmp_path: Path, local_ray: str) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 6)
    settings = config(tmp_path, workers=4, address=local_ray, steps=4000, queue=3, replicas={0: 2, 1: 2})
    settings["checkpoint"]["every"] = 4000
    result = orchestrator.run(settings, quiet=True, trial=trial)
    assert result.status == "STOPPED" and 6 <= result.step < 4000
    assert (result.run_dir / "checkpoints" / f"step-{result.step:06d}" / "checkpoint.json").is_file()


@pytest.mark.slow
def test_asynchronous_workers_do_their_quotas_and_are_stopped_at_the_end_of_one(tmp_path: Path, local_ray: str) -> None:
    changes = {"regime": "asynchronous", "buffer": 2, "max_reuse": 3, "steps": 4000, "modules": 3}
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 6)
    settings = config(tmp_path, address=local_ray, workers=3, **changes)
    settings["checkpoint"]["every"] = 4000
    result = orchestrator.run(settings, quiet=True, trial=trial)
    assert result.status == "STOPPED" and result.step % 10 == 0 and 10 <= result.step < 4000
    told = {f"{row['scope']}/{row['name']}" for row in result.history().to_pylist()}
    assert {"workers/staleness_1", "workers/reused_2", "workers/unused_1"} <= told
