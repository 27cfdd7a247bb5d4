"""Searches on a cluster of two nodes that was there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator
from cluster.simulated import SimulatedCluster
from orchestrator.config import format_override
from orchestrator.rundir import RunDirectory
from orchestrator.trial_run import history

LR = "strategy.client.optimizer.lr"
pytestmark = pytest.mark.multinode


def config(root: Path, **cluster: Any) -> dict[str, Any]:
    return {
        "name": "search",
        "seed": 7,
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": 8}},
        "model": {"name": "logistic"},
        "strategy": {"algorithm": {"name": "fedavg", "rounds": 2, "cohort": 4}, "client": {"batch_size": 20}},
        "cluster": cluster,
        "tracking": {"enabled": False},
        "storage": {"root": str(root)},
        "search": {"space": {LR: {"grid": [0.1]}}},
    }


def curve(run_dir: Path) -> list[tuple[int, float]]:
    return history(RunDirectory.open(run_dir), "test/accuracy")


def test_a_trial_has_its_process_here_and_its_workers_on_all_nodes(
    tmp_path: Path, with_token: SimulatedCluster
) -> None:
    settings = config(tmp_path / "runs", address=with_token.address, workers=3, placement="spread")
    result = orchestrator.tune(settings, quiet=True)
    assert [trial.status for trial in result.trials] == ["FINISHED"]
    for trial in result.trials:
        started = [event for event in RunDirectory.open(trial.run_dir).events() if event["kind"] == "worker_started"]
        assert len(started) == 3
        alone = {**settings, "search": None, "cluster": {"workers": 0}, "storage": {"root": str(tmp_path / "alone")}}
        overrides = [format_override(*item) for item in trial.params.items()]
        assert curve(trial.run_dir) == curve(orchestrator.run(alone, overrides=overrides, quiet=True).run_dir)


def test_a_search_through_ray_client_is_refused_with_what_to_type(tmp_path: Path, with_token: SimulatedCluster) -> None:
    settings = config(tmp_path / "runs", address=with_token.client_address, workers=1)
    with pytest.raises(orchestrator.PlacementError, match=r"on none\n.*orchestrator submit"):
        orchestrator.tune(settings, quiet=True)
    assert not (tmp_path / "runs").exists()
