"""A node with one worker of a lossless run is lost: that worker alone begins again on another node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import orchestrator
from cluster.simulated import SimulatedCluster
from orchestrator.life import Trial
from orchestrator.rundir import RunDirectory
from tests.cluster.test_local_gang import config, same


@pytest.mark.multinode
@pytest.mark.slow
def test_the_worker_of_a_lost_node_begins_again_elsewhere_and_the_bits_are_the_same(
    tmp_path: Path, with_token: SimulatedCluster
) -> None:
    reference = orchestrator.run(config(tmp_path / "reference", workers=0), quiet=True)
    lost = with_token.add_node({"CPU": 1, "extra": 1})
    spare = with_token.add_node({"CPU": 1, "extra": 2})
    settings = config(tmp_path, workers=2, address=with_token.address, recovery="alone")
    settings["cluster"] |= {"placement": "spread", "resources_per_worker": {"CPU": 0.5, "extra": 1}}
    settings["checkpoint"] = {"every": 20}

    def remove(report: Any, directory: RunDirectory) -> bool:
        if report.state.step == 6:
            pids = {event["pid"] for event in directory.events() if event["kind"] == "worker_started"}
            assert pids & set(with_token.pids(lost))
            with_token.kill_node(lost)
        return False

    try:
        result = orchestrator.run(settings, quiet=True, trial=Trial(tmp_path / "run", 0, {}, on_step=remove))
    finally:
        with_token.kill_node(spare)  # other tests count the nodes of this cluster
    same(reference, result)
    kinds = [event["kind"] for event in RunDirectory.open(result.run_dir).events()]
    assert kinds.count("worker_started") == 2 and kinds.count("worker_replaced") == 1
    assert "rank_recovered" in kinds and "gang_restarted" not in kinds
