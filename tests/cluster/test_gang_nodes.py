"""Gangs across real nodes, and driven from outside through Ray Client; a node lost is told by the rank it held."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.connect import connect
from cluster.errors import RemoteFailure
from cluster.gang import Gang
from cluster.simulated import SimulatedCluster

pytestmark = [pytest.mark.multinode, pytest.mark.slow]

HERE = str(Path(__file__).parent)
Told = list[tuple[str, dict[str, Any]]]


def groups_left() -> list[str]:
    from ray.util import placement_group_table

    return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]


def alive(pids: Iterable[int], timeout_s: float = 10.0) -> list[int]:
    """Return those of the processes that are still there after a while."""
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [process.pid for process in psutil.wait_procs(found, timeout=timeout_s)[1]]


def test_a_node_lost_is_told_by_its_rank_and_the_gang_starts_again(with_token: SimulatedCluster, told: Told) -> None:
    def notify(kind: str, fields: Any) -> None:
        told.append((kind, dict(fields)))

    with connect(with_token.address):
        extra = with_token.add_node({"CPU": 1})  # joins after the driver, which so is on another node
        settings: dict[str, Any] = {
            "start_timeout_s": 90.0,
            "stall_timeout_s": 60.0,
            "notify": notify,
            "paths": (HERE,),
        }
        with Gang(3, {"CPU": 1}, "spread", **settings) as gang:
            reports = gang.run("toy_gang:wait_for_ever", {})
            pids = {report.rank: report.payload for report in (next(reports), next(reports), next(reports))}
            (victim,) = [rank for rank, pid in pids.items() if pid in with_token.pids(extra)]
            with_token.kill_node(extra)
            with pytest.raises(RemoteFailure) as caught:
                next(reports)
            assert (caught.value.worker, caught.value.lost) == (f"rank {victim}", True), caught.value.reason
            assert "node" in caught.value.reason or "killed" in caught.value.reason
            assert alive(pids.values()) == []
            assert sorted(report.rank for report in gang.run("toy_gang:count", {"num_reports": 1})) == [0, 1, 2]
            assert groups_left() == []


def test_the_hub_is_on_the_driver_s_node(with_token: SimulatedCluster) -> None:
    import ray

    with connect(with_token.address):
        here = ray.get_runtime_context().get_node_id()
        for _ in range(5):
            with Gang(2, {"CPU": 1}, "spread", paths=(HERE,)) as gang:
                assert ray.get(gang._hub.node_id.remote()) == here


def test_a_driver_outside_the_cluster_runs_a_gang_like_any_other(with_token: SimulatedCluster) -> None:
    with connect(with_token.client_address), Gang(2, {"CPU": 1}, "spread", start_timeout_s=90, paths=(HERE,)) as gang:
        shared = gang.share({"a": 1})
        reports = [report.payload for report in gang.run("toy_gang:echo", {"one": shared, "many": [shared, 2]})]
        assert reports == [{"one": {"a": 1}, "many": [{"a": 1}, 2]}] * 2
        reports = gang.run("toy_gang:wait_for_ever", {})
        pids = [next(reports).payload, next(reports).payload]
        assert [sum(pid in with_token.pids(node) for pid in pids) for node in range(2)] == [1, 1]
        reports.close()
        assert groups_left() == []
    assert alive(pids) == []
