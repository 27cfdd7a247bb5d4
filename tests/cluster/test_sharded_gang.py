"""Sharded layouts on a gang: the figures of one process, the bytes of the plan, also when a rank is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.life import Trial
from orchestrator.rundir import RunDirectory

pytestmark = pytest.mark.ray


def config(root: Path, workers: int, address: str) -> dict[str, Any]:
    return {
        "name": "sharded",
        "seed": 5,
        "data": {"name": "digits", "limit": 300},
        "model": {"name": "mlp", "hidden": [32], "dropout": 0.1, "dtype": "float64"},
        "strategy": {
            "kind": "sharded", "mesh": [2], "placements": {"1.*": "S(0)", "4.weight": "S(1)"}, "steps": 30,
            "batch_size": 16, "optimizer": {"name": "adamw", "lr": 0.01}, "clip_norm": 1.0,
        },
        "cluster": {"workers": workers, "address": address, "resources_per_worker": {"CPU": 0.5}},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 5},
        "evaluate": {"every": 10},
        "storage": {"root": str(root)},
    }  # fmt: skip


def figures(run: Any) -> dict[tuple[int, str], float]:
    rows = run.history().to_pylist()
    return {(row["step"], row["name"]): row["value"] for row in rows if row["scope"] in ("train", "test")}


def test_a_gang_has_the_figures_of_one_process_when_a_rank_is_killed(tmp_path, local_ray: str) -> None:
    alone = orchestrator.run(config(tmp_path / "alone", 0, "local"), quiet=True)
    killed: list[int] = []

    def kill_one(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 12 and not killed:
            killed.append([event["pid"] for event in directory.events() if event["kind"] == "worker_started"][-1])
            os.kill(killed[0], signal.SIGKILL)
        return False

    trial = Trial(tmp_path / "run", 0, {}, on_step=kill_one)
    result = orchestrator.run(config(tmp_path / "gang", 2, local_ray), quiet=True, trial=trial)
    assert killed and any(event["kind"] == "gang_restarted" for event in RunDirectory.open(result.run_dir).events())
    assert figures(result) == pytest.approx(figures(alone), abs=1e-9)
    sent = {row["value"] for row in result.history().to_pylist() if row["name"] == "boundary_bytes"}
    assert sent == {2 * 16 * 10 * 8 + 32}  # one sum of the output, and one of the norm and the wish to stop
