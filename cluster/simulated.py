"""A real Ray cluster of several nodes on one machine, for tests and demonstrations.

Every node is a `ray start --block` with ports of its own, on 127.0.0.1 alone and in the cluster's own temp folder. Its
processes are known by their session and by a mark in their environment, so that stopping it ends exactly these;
`ray stop`, which ends every Ray on the machine, is never used. It does not simulate slow networks.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cluster.errors import Unreachable
from cluster.inventory import LOOPBACK
from cluster.probe import split, tcp

MARK = "CLUSTER_SIMULATED_NODE"

# `ray start` replaces 127.0.0.1 by an address that others can reach; here nobody else may.
_START = f"""
import os, ray._private.services as services
services.get_node_ip_address = lambda address=None: {LOOPBACK!r}
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
from ray.scripts.scripts import main
main()
"""


class _Started(NamedTuple):
    mark: str
    process: subprocess.Popen[bytes]
    log: Path


class SimulatedCluster:
    """Nodes of a Ray cluster, the first of them the head. Use as a context manager.

    Args:
        nodes: for each node its resources, such as `{"CPU": 2}`; `memory` in bytes.
        token_auth: require a token; it is made here and kept in `token`.
        environment: further variables for every node.
        start_timeout_s: longest wait for a node to join.
    """

    def __init__(
        self,
        nodes: Sequence[Mapping[str, float]],
        *,
        token_auth: bool = False,
        environment: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        self._wanted = [dict(node) for node in nodes]
        self._extra = dict(environment or {})
        self._start_timeout_s = start_timeout_s
        self._nodes: list[_Started | None] = []
        self.token = secrets.token_hex(32) if token_auth else ""
        self.folder = Path()
        self.address = ""
        self.client_address = ""
        self.dashboard_url = ""

    def __enter__(self) -> SimulatedCluster:
        # Ray puts sockets in here, and a socket's path may have 107 characters: keep it short.
        self.folder = Path(tempfile.mkdtemp(prefix="sim-", dir="/tmp" if os.path.isdir("/tmp") else None))
        try:
            for resources in self._wanted:
                self.add_node(resources)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a client on this machine reaches the cluster."""
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**(token if self.token else {"RAY_AUTH_MODE": "disabled"}), "RAY_ADDRESS": self.address}

    def add_node(self, resources: Mapping[str, float]) -> int:
        """Start a node, wait until it has joined, and return its index."""
        index, head = len(self._nodes), not self._nodes
        ports = iter(_free_ports(4))
        arguments = [f"--port={next(ports)}", "--head"] if head else [f"--address={self.address}"]
        arguments += [f"--dashboard-agent-listen-port={next(ports)}", "--min-worker-port=0", "--max-worker-port=0"]
        if head:
            self.address = f"{LOOPBACK}:{arguments[0].partition('=')[2]}"
            dashboard, client = next(ports), next(ports)
            self.dashboard_url = f"http://{LOOPBACK}:{dashboard}"
            self.client_address = f"ray://{LOOPBACK}:{client}"
            arguments += ["--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard}"]
            arguments += [f"--ray-client-server-port={client}"]
        # Nodes that shared a folder would delete each other's copies of jobs' working folders.
        arguments += [f"--temp-dir={self.folder / str(index)}"]
        arguments += [f"--node-ip-address={LOOPBACK}", f"--node-name=node-{index}", "--disable-usage-stats", "--block"]
        arguments += _resource_arguments(resources)
        self._nodes.append(self._spawn(index, arguments))
        self._wait_for(index)
        return index

    def kill_node(self, index: int) -> None:
        """Kill every process of a node at once, as a power cut would."""
        node = self._nodes[index]
        if node is not None:
            _kill(node)
            node.process.wait(timeout=10)
            self._nodes[index] = None

    def pids(self, index: int) -> list[int]:
        """List the processes of a node."""
        node = self._nodes[index]
        return [] if node is None else _processes(node)

    def stop(self) -> None:
        """Kill all nodes, the head last, and remove the temp folder."""
        for index in reversed(range(len(self._nodes))):
            self.kill_node(index)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, index: int, arguments: list[str]) -> _Started:
        mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= self._extra
        environment |= {
            MARK: mark,
            "RAY_AUTH_MODE": "token" if self.token else "disabled",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
            "RAY_worker_register_timeout_seconds": "120",
            "GRPC_ENABLE_FORK_SUPPORT": "0",  # its fork handlers at times crash the servers that Ray Client forks
        }
        if self.token:
            environment["RAY_AUTH_TOKEN"] = self.token
        log = self.folder / f"node-{index}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, "start", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
            )
        return _Started(mark, process, log)

    def _wait_for(self, index: int) -> None:
        """Wait for the line with which `ray start --block` says that its node runs."""
        node = self._nodes[index]
        assert node is not None
        deadline = time.monotonic() + self._start_timeout_s
        while not self._is_up(node.log):
            try:
                node.process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
            tail = node.log.read_text(errors="replace")[-2000:]
            raise Unreachable(self.address, f"node {index} did not start in {self._start_timeout_s:g} s:\n{tail}")

    def _is_up(self, log: Path) -> bool:
        if b"Ray runtime started" not in log.read_bytes():
            return False
        # The head starts its Ray Client server last, in the background.
        host, port = split(self.client_address.removeprefix("ray://"))
        try:
            tcp(self.client_address, host, port, timeout_s=1.0)
        except Unreachable:
            return False
        return True


def _resource_arguments(resources: Mapping[str, float]) -> list[str]:
    known = {"CPU": "--num-cpus", "GPU": "--num-gpus", "memory": "--memory"}
    other = {name: amount for name, amount in resources.items() if name not in known}
    arguments = [f"{known[name]}={int(amount)}" for name, amount in resources.items() if name in known]
    return [*arguments, f"--resources={json.dumps(other)}", f"--object-store-memory={200 * 2**20}"]


def _free_ports(count: int) -> list[int]:
    """Find ports below the range from which the kernel, and so Ray's other servers, take theirs."""
    ports: list[int] = []
    for _ in range(1000):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
        if len(ports) == count:
            return ports
    raise OSError(f"no {count} free ports between 20000 and 32000")


def _processes(node: _Started) -> list[int]:
    """List a node's live processes: those of its session, and those whose environment carries its mark.

    Ray's dashboard writes long titles over its environment, and the commands of jobs have sessions of their own, so
    neither sign would do alone.
    """
    wanted = f"{MARK}={node.mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if state in "ZX":
                continue
            if int(session) == node.process.pid or wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended, or is another user's
    return found


def _kill(node: _Started) -> None:
    """Kill until none is left, since a dying parent may still have started a child."""
    deadline = time.monotonic() + 10
    while (pids := _processes(node)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
