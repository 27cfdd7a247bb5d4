"""A pipeline over real nodes, one of which is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from cluster.simulated import SimulatedCluster
from orchestrator.life import Trial
from orchestrator.rundir import RunDirectory
from tests.cluster.pipeline_runs import config, same


@pytest.mark.multinode
@pytest.mark.slow
def test_a_node_is_lost_and_the_gang_goes_on_elsewhere(tmp_path: Path, with_token: SimulatedCluster) -> None:
    reference = orchestrator.run(config(tmp_path / "reference", steps=60), quiet=True)
    lost = with_token.add_node({"CPU": 1, "extra": 1})
    spare = with_token.add_node({"CPU": 1, "extra": 2})
    each = {"CPU": 0.5, "extra": 1}
    settings = config(
        tmp_path, steps=60,
        cluster={"workers": 2, "address": with_token.address, "placement": "spread", "resources_per_worker": each},
    )  # fmt: skip

    def remove(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 6 and not removed:
            pids = {e["pid"] for e in directory.events() if e["kind"] == "worker_started"}
            assert pids & set(with_token.pids(lost))
            with_token.kill_node(lost)
            removed.append(time.time())
        return False

    removed: list[float] = []
    try:
        result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=remove))
    finally:
        with_token.kill_node(spare)  # other tests count the nodes of this cluster
    same(reference, result)
    events = list(RunDirectory.open(result.run_dir).events())
    assert "gang_restarted" in [event["kind"] for event in events]
    again = [event["time"] for event in events if event["kind"] == "worker_started" and event["time"] > removed[0]]
    assert len(again) == 2 and again[0] - removed[0] < 120
