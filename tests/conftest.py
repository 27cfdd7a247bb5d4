"""What all tests share: the data folder, a scratch run root, and the promise that nothing is left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.simulated import MARK, SimulatedCluster

# A test run must not reach a tracking server, a Ray cluster or a home folder that the developer happens to have.
for _name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "ORCHESTRATOR_ROOT"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets; a test that needs it is skipped where `ORCHESTRATOR_DATA` names none."""
    folder = os.environ.get("ORCHESTRATOR_DATA")
    if not folder or not Path(folder, "fashion-mnist").is_dir():
        pytest.skip("set ORCHESTRATOR_DATA to the folder of data sets to run this test")
    return Path(folder)


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[SimulatedCluster]:
    """A head and one more node, two CPUs each, with a token required; nothing of them may be left in the end."""
    installed = {"PYTHONPATH": str(Path(__file__).parents[1])}  # as on a cluster whose nodes have the project
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


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaks a child process, a thread or an environment variable.

    Tests that share the session's Ray cluster leave Ray's own processes and threads to the session.
    """
    if request.node.get_closest_marker("ray") or request.node.get_closest_marker("multinode"):
        yield
        return
    environment = dict(os.environ)
    threads = set(threading.enumerate())
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    assert _changes(environment, dict(os.environ)) == {}, "environment variables leaked"
    left = [thread for thread in threading.enumerate() if thread not in threads and not _harmless(thread)]
    for thread in left:
        thread.join(timeout=5)
    assert [thread.name for thread in left if thread.is_alive()] == [], "threads leaked"
    new = [child for child in psutil.Process().children(recursive=True) if child.pid not in children]
    _, alive = psutil.wait_procs(new, timeout=5)
    alive = [child for child in alive if not _resource_tracker(child)]
    assert [child.pid for child in alive] == [], "processes leaked"


def _changes(before: dict[str, str], after: dict[str, str]) -> dict[str, str | None]:
    # pytest's own, and those that importing torch and scikit-learn sets for good
    ours = {
        "PYTEST_CURRENT_TEST",
        "KINETO_LOG_LEVEL",
        "KMP_DUPLICATE_LIB_OK",
        "KMP_INIT_AT_FORK",
        "TORCHINDUCTOR_CACHE_DIR",
    }
    names = (before.keys() | after.keys()) - ours
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _harmless(thread: threading.Thread) -> bool:
    return thread.daemon and thread.name.startswith(("ThreadPoolExecutor", "tqdm", "QueueFeederThread"))


def _resource_tracker(process: psutil.Process) -> bool:
    try:
        return "resource_tracker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return True


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
