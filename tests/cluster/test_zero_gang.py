"""ZeRO on a gang: the losses of one process, files that ranks write, other ranks and stages, and lost ranks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.checkpoints import CheckpointStore
from orchestrator.errors import WorkerError
from orchestrator.life import Trial
from orchestrator.report import write_report
from orchestrator.run import resume_run
from orchestrator.rundir import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed]


def config(root: Path, workers: int = 2, address: str = "local", **strategy: Any) -> dict[str, Any]:
    return {
        "name": "zero",
        "seed": 5,
        "data": {"name": "synthetic", "examples": 90, "test_examples": 20, "features": 6, "classes": 3},
        "model": {"name": "mlp", "hidden": [40, 40]},
        "strategy": {
            "kind": "zero", "ranks": 2, "stage": 3, "steps": 12, "batch_size": 9,
            "optimizer": {"name": "adamw", "lr": 0.01}, "learning_rate": {"name": "cosine", "warmup_steps": 3},
            "clip_norm": 1.0, **strategy,
        },
        "cluster": {"workers": workers, "address": address, "resources_per_worker": {"CPU": 0.5}},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 6},
        "storage": {"root": str(root)},
    }  # fmt: skip


def losses(run: Any) -> dict[int, float]:
    return {row["step"]: row["value"] for row in run.history().to_pylist() if row["name"] == "loss"
            and row["scope"] == "train"}  # fmt: skip


def close(a: Any, b: Any, steps: int = 12) -> None:
    """The same losses to five decimals, and the same model as far as sums in another order are."""
    mine, theirs = losses(a), losses(b)
    assert sorted(mine) == sorted(theirs) == list(range(1, steps + 1))
    assert all(abs(mine[step] - theirs[step]) < 5e-6 for step in mine)
    weights = b.weights()
    assert all(torch.allclose(tensor, weights[name], atol=2e-4) for name, tensor in a.weights().items())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run in this process."""
    return orchestrator.run(config(tmp_path_factory.mktemp("reference"), workers=0), quiet=True)


def kill_at(step: int, which: int, killed: list[int]) -> Callable[[Any, RunDirectory], bool]:
    def kill(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == step and not killed:
            pids = [event["pid"] for event in directory.events() if event["kind"] == "worker_started"]
            killed.append(pids[which])
            os.kill(killed[0], signal.SIGKILL)
        return False

    return kill


def test_ranks_have_the_losses_of_one_process_and_write_what_they_hold(
    reference: Any, tmp_path: Path, local_ray: str
) -> None:
    result = orchestrator.run(config(tmp_path, address=local_ray), quiet=True)
    close(reference, result)
    names = sorted(path.name for path in (result.run_dir / "checkpoints" / "step-000012").iterdir())
    assert names == ["checkpoint.json", "shard-0-of-2.arrow", "shard-1-of-2.arrow"]
    told = {row["name"] for row in result.history().to_pylist() if row["scope"] == "memory"}
    assert {"parameters_bytes", "gradients_bytes", "optimizer_bytes"} <= told
    text = write_report(result.run_dir).read_text()
    assert "of what was expected" in text and "measured" in text
    again = resume_run(result.run_dir, overrides=["cluster.workers=0", "strategy.ranks=3"], quiet=True)
    assert again.step == 12  # it was done; from its files, in this process
    assert all(torch.equal(again.weights()[name], tensor) for name, tensor in result.weights().items())


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_rank_killed_outright_is_started_again_from_the_last_whole_checkpoint(
    which: int, reference: Any, tmp_path: Path, local_ray: str
) -> None:
    killed: list[int] = []
    trial = Trial(tmp_path / "run", 0, {}, on_step=kill_at(6, which, killed))
    result = orchestrator.run(config(tmp_path, address=local_ray), quiet=True, trial=trial)
    assert killed
    close(reference, result)
    (restart,) = [event for event in RunDirectory.open(result.run_dir).events() if event["kind"] == "gang_restarted"]
    assert restart["from_step"] in (4, 8)


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks_and_stages_and_in_one_process(tmp_path: Path, local_ray: str) -> None:
    constant = {"learning_rate": {"name": "constant"}}
    whole = orchestrator.run(config(tmp_path, workers=0, **constant), quiet=True)
    first = orchestrator.run(config(tmp_path, address=local_ray, **{**constant, "steps": 3}), quiet=True)
    for steps, others in (
        (5, ["strategy.ranks=1", "strategy.stage=1"]),
        (7, ["strategy.stage=2"]),
        (9, ["cluster.workers=0"]),
        (12, ["strategy.ranks=3", "strategy.stage=3", "cluster.resources_per_worker.CPU=0.25"]),
    ):
        last = resume_run(first.run_dir, overrides=[f"strategy.steps={steps}", *others], quiet=True)
        assert last.step == steps
    close(whole, last)


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_as_it_would_have(
    reference: Any, tmp_path: Path, local_ray: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(tmp_path / "run", 0, {}, on_step=lambda report, directory: report.state.step == 9)
    cut = orchestrator.run(config(tmp_path, address=local_ray), quiet=True, trial=trial)
    newest = cut.run_dir / "checkpoints" / f"step-{cut.step:06d}" / "shard-1-of-2.arrow"
    newest.write_bytes(newest.read_bytes()[:-3])
    result = resume_run(cut.run_dir, quiet=True)
    assert "shard-1-of-2.arrow" in capsys.readouterr().err
    close(reference, result)


@pytest.mark.slow
def test_weights_of_a_file_reach_ranks_that_hold_parts(tmp_path: Path, local_ray: str) -> None:
    from orchestrator.weights import export

    first = orchestrator.run(config(tmp_path, workers=0, steps=4), quiet=True)
    export(first.run_dir, tmp_path / "w.pt")
    runs = []
    for workers in (0, 2):
        given = config(tmp_path, workers=workers, address=local_ray, steps=4)
        given["model"]["weights"] = str(tmp_path / "w.pt")
        given["strategy"]["learning_rate"] = {"name": "constant"}
        runs.append(orchestrator.run(given, quiet=True))
    close(*runs, steps=4)
    assert losses(runs[0])[1] < losses(first)[1]


@pytest.mark.slow
def test_checkpoints_go_where_storage_says_also_by_a_uri(tmp_path: Path, local_ray: str) -> None:
    given = config(tmp_path, address=local_ray, steps=4)
    given["checkpoint"]["storage"] = f"file://{tmp_path / 'elsewhere'}"
    result = orchestrator.run(given, quiet=True)
    store = CheckpointStore(tmp_path / "elsewhere" / result.run_dir.name, 3)
    assert store.steps() == [4] and not list((result.run_dir / "checkpoints").iterdir())
    assert (
        result.weights().keys() == orchestrator.run(config(tmp_path, workers=0, steps=1), quiet=True).weights().keys()
    )


@pytest.mark.slow
def test_a_rank_that_is_lost_too_often_ends_the_run_with_what_to_type(tmp_path: Path, local_ray: str) -> None:
    killed: list[int] = []
    trial = Trial(tmp_path / "run", 0, {}, on_step=kill_at(6, 1, killed))
    with pytest.raises(WorkerError, match="orchestrator resume"):
        orchestrator.run(config(tmp_path, address=local_ray, restarts=0, steps=400), quiet=True, trial=trial)
    result = resume_run(tmp_path / "run", overrides=["cluster.workers=0"], quiet=True)
    assert result.step == 400
