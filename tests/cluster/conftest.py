"""Clusters for the tests in this folder: one of this process's own a module, and one of two real nodes a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.connect import connect
from cluster.executor import WorkerSpec
from cluster.simulated import MARK, SimulatedCluster


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """A cluster of this process's own with four CPUs; returns the address that makes a run use it."""
    folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")
    with folder as name, connect("local", min_cpus=4, temp_dir=name):
        yield "local"


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[SimulatedCluster]:
    """A head and one more node, two CPUs each, with a token required; nothing of them may be left in the end."""
    installed = {"PYTHONPATH": str(Path(__file__).parents[2])}  # as on a cluster whose nodes have the project
    with SimulatedCluster([{"CPU": 2}, {"CPU": 2}], token_auth=True, environment=installed) as cluster:
        yield cluster
        pids = {pid for index in range(2) for pid in cluster.pids(index)}
    left = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert left == []
    assert not cluster.folder.exists()
    assert marked_processes() == []


@pytest.fixture
def with_token(two_nodes: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> SimulatedCluster:
    """The two nodes, and this process's environment such that it may talk to them."""
    for name, value in two_nodes.environment.items():
        monkeypatch.setenv(name, value)
    return two_nodes


@pytest.fixture
def toy() -> Callable[..., WorkerSpec]:
    def spec(**kwargs: Any) -> WorkerSpec:
        return WorkerSpec("toy_worker:Toy", kwargs, (str(Path(__file__).parent),))

    return spec


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    """What an executor has told its `notify`."""
    return []


def marked_processes() -> list[int]:
    """List the live processes of any simulated node that this process started."""
    found = []
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
        except psutil.Error:
            continue
        if mark.startswith(f"{os.getpid()}-"):
            found.append(process.pid)
    return found
