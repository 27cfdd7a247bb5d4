"""What all tests share: the data folder, clusters that many tests use, and the promise that nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from cluster.connect import connect
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


_own_cluster = ExitStack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of the two nodes come last, so that the cluster of `local_ray` is started once."""
    items.sort(key=_elsewhere)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Be in the cluster of `local_ray` before all fixtures of a test that wants it; leave it before one that must not.

    A process is connected to one cluster at a time. Tests on Ray that say nothing, as with a driver apart, do not mind.
    """
    if "local_ray" in getattr(item, "fixturenames", ()):
        _join_own_cluster()
    elif _elsewhere(item) or item.get_closest_marker("ray") is None:
        _own_cluster.close()


def pytest_sessionfinish() -> None:
    """End the cluster of `local_ray`."""
    _own_cluster.close()


def _elsewhere(item: pytest.Item) -> bool:
    return "two_nodes" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def leave_own_cluster() -> Callable[[], None]:
    """For fixtures that connect to another cluster than `local_ray`: end that first."""
    return _own_cluster.close


@pytest.fixture
def local_ray() -> str:
    """A cluster of this process's own with four CPUs, shared by tests; returns the address that makes a run use it."""
    return "local"


def _join_own_cluster() -> None:
    import ray

    if not ray.is_initialized():
        _own_cluster.close()
        name = _own_cluster.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp"))
        _own_cluster.enter_context(connect("local", min_cpus=4, temp_dir=name))


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
