"""Two real nodes on one machine, token required: pools across nodes, a node lost, Ray Client, tokens missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import inventory
from cluster.connect import connect
from cluster.errors import PlacementFailed, Unreachable
from cluster.executor import Call, WorkerSpec
from cluster.pool import RayExecutor
from cluster.simulated import SimulatedCluster

pytestmark = pytest.mark.multinode

ROOT = Path(__file__).parents[2]
Spec = Callable[..., WorkerSpec]
Told = list[tuple[str, dict[str, Any]]]


def test_the_inventory_lists_both_nodes_head_first(with_token: SimulatedCluster) -> None:
    with connect(with_token.address) as connection:
        assert connection == (with_token.address, "joined")
        nodes = inventory.of_cluster()
    assert [node.total["CPU"] for node in nodes] == [2.0, 2.0]
    assert len({node.id for node in nodes}) == 2
    assert all(node.address == "127.0.0.1" and node.alive for node in nodes)


def test_a_pool_spans_the_nodes(with_token: SimulatedCluster, toy: Spec, told: Told) -> None:
    def notify(kind: str, fields: Any) -> None:
        told.append((kind, dict(fields)))

    with connect(with_token.address), RayExecutor(2, {"CPU": 1}, "spread", start_timeout_s=60, notify=notify) as pool:
        handle = pool.share(b"x" * 1_000_000)
        pool.start(toy(base=1))
        assert sorted(answer.value for answer in pool.run([Call("add", (n,)) for n in range(10)])) == list(range(1, 11))
        assert {len(answer.value) for answer in pool.run([Call("echo", (handle,))] * 8)} == {1_000_000}
        pids = {fields["pid"] for kind, fields in told if kind == "worker_started"}
        for index in range(2):
            assert len(pids & set(with_token.pids(index))) == 1


def test_shortage_over_both_nodes_is_told_with_numbers(with_token: SimulatedCluster) -> None:
    with connect(with_token.address):
        with pytest.raises(PlacementFailed) as caught, RayExecutor(5, {"CPU": 1}):
            pass
        assert caught.value.reason == "4 of 5 workers fit on 2 nodes: short of 1 CPU"
        with pytest.raises(PlacementFailed) as caught, RayExecutor(1, {"CPU": 3}):
            pass
        assert caught.value.reason == "0 of 1 worker fit on 2 nodes: short of 1 CPU"


@pytest.mark.slow
def test_ray_client_gives_the_same_pool(with_token: SimulatedCluster, toy: Spec, tmp_path: Path) -> None:
    with (
        connect(with_token.client_address) as connection,
        RayExecutor(3, {"CPU": 1}, "spread", start_timeout_s=60) as pool,
    ):
        assert connection.how == "joined"
        assert len(inventory.of_cluster()) == 2
        pool.start(toy(base=pool.share(5)))
        calls = [Call("die_once", (str(tmp_path / "died"), number)) for number in range(12)]
        assert sorted(answer.value for answer in pool.run(calls)) == list(range(12))
        assert [answer.value for answer in pool.run([Call("add", (2,))])] == [7]


def test_a_node_lost_in_the_middle_changes_no_answer(with_token: SimulatedCluster, toy: Spec, told: Told) -> None:
    def notify(kind: str, fields: Any) -> None:
        told.append((kind, dict(fields)))

    extra = with_token.add_node({"CPU": 1, "extra": 1})
    with connect(with_token.address), RayExecutor(5, {"CPU": 1}, start_timeout_s=60, notify=notify) as pool:
        pool.start(toy(base=1))
        assert len([kind for kind, _ in told if kind == "worker_started"]) == 5
        answers = pool.run([Call("spin", (0.05 + number / 1000,)) for number in range(60)])
        got = [next(answers) for _ in range(10)]
        with_token.kill_node(extra)
        got += answers
    assert sorted((answer[0], answer.value) for answer in got) == [(n, 0.05 + n / 1000) for n in range(60)]
    lost = [fields for kind, fields in told if kind == "worker_lost"]
    assert lost
    assert all("node" in fields["reason"] for fields in lost)


@pytest.mark.parametrize("kind", ["address", "client_address"])
@pytest.mark.parametrize(
    "environment, given", [({"RAY_AUTH_MODE": "disabled"}, "none was sent"), ({}, "is not its own")]
)
def test_a_token_that_is_missing_or_wrong_is_told_at_once_and_never_shown(
    two_nodes: SimulatedCluster,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    kind: str,
    environment: dict[str, str],
    given: str,
) -> None:
    wrong = "0123456789abcdef" * 4
    for name, value in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": wrong} | environment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unreachable) as caught, connect(getattr(two_nodes, kind)):
        pass
    assert given in caught.value.reason
    assert "RAY_AUTH_TOKEN" in caught.value.reason
    everything = str(caught.value) + "".join(capfd.readouterr())
    assert wrong not in everything
    assert two_nodes.token not in everything


def test_the_clusters_logs_hold_no_token(two_nodes: SimulatedCluster) -> None:
    logs = [path for path in two_nodes.folder.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]
    assert len(logs) > 5
    lines = [(path.name, line) for path in logs for line in path.read_text(errors="replace").splitlines()]
    token = two_nodes.token
    assert [f"{name}: {line.replace(token, 'THE TOKEN')}" for name, line in lines if token in line] == []


def test_auto_finds_the_cluster_in_the_environment(with_token: SimulatedCluster) -> None:
    with connect("auto") as connection:
        assert connection == (with_token.address, "joined")


def test_a_process_that_is_connected_stays_so(with_token: SimulatedCluster) -> None:
    import ray

    with connect(with_token.address):
        with connect("local") as inner:
            assert inner == (with_token.address, "reused")
        assert ray.is_initialized()
    assert not ray.is_initialized()


@pytest.mark.slow
def test_connecting_leaves_environment_and_signals_as_they_were(with_token: SimulatedCluster, tmp_path: Path) -> None:
    code = f"""
import os, signal
before = dict(os.environ)
mine = lambda number, frame: None
signal.signal(signal.SIGTERM, mine)
from cluster.connect import connect
for address in ("{with_token.address}", "{with_token.client_address}", "local"):
    with connect(address):
        import ray
        ray.put(1)
        assert signal.getsignal(signal.SIGTERM) is mine, address
    assert signal.getsignal(signal.SIGTERM) is mine, address
    assert {{k: v for k, v in os.environ.items() if before.get(k) != v}} == {{}}, address
import psutil
_, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=10)
assert not alive, alive
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []  # no token was written into the home folder
