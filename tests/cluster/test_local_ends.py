"""A local cluster ends with the process that started it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

HERE = Path(__file__).parent
DRIVER = f"""
import sys
from cluster.connect import connect
from cluster.executor import Call, WorkerSpec
from cluster.pool import RayExecutor
with connect("local", min_cpus=2, temp_dir=sys.argv[1]), RayExecutor(2, start_timeout_s=60) as pool:
    pool.start(WorkerSpec("toy_worker:Toy", {{}}, ({str(HERE)!r},)))
    pids = {{answer.value for answer in pool.run([Call("pid", ())] * 8)}}
    print("ready", *pids, flush=True)
    list(pool.run([Call("spin", (0.05,))] * 20_000))
"""


AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}


def process_name(process: psutil.Process) -> str:
    """Return the title that Ray gives a process, in full where the kernel keeps 15 letters of it."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.NoSuchProcess:
        return ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_the_driver_ends_its_cluster(number: signal.Signals, tmp_path: Path) -> None:
    folder = Path("/tmp") / f"ray-{os.getpid()}-{number.value}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**inherited, "HOME": str(tmp_path)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)],
        cwd=HERE.parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    processes: list[psutil.Process] = []
    try:
        assert driver.stdout is not None
        line = driver.stdout.readline().split()
        assert line[0] == "ready"
        processes = psutil.Process(driver.pid).children(recursive=True)
        assert {process_name(process) for process in processes} >= AGENTS
        assert {int(pid) for pid in line[1:]} <= {process.pid for process in processes}
        assert len(processes) >= 5
        os.kill(driver.pid, number)
        driver.communicate(timeout=60)
        assert driver.returncode != 0
        # After a SIGKILL Ray's two agents look for the head for another minute before they end.
        last = [process for process in processes if number == signal.SIGKILL and process_name(process) in AGENTS]
        _, alive = psutil.wait_procs([process for process in processes if process not in last], timeout=60)
        assert [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
        assert list(tmp_path.iterdir()) == []
    finally:
        driver.kill()
        driver.wait()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        subprocess.run(["rm", "-rf", str(folder)], check=True)
