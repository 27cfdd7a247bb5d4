"""What there is to place workers on: this machine without Ray, or the nodes of the cluster we are connected to.

It counts what Ray would count, so that a plan made before Ray starts holds afterwards. It does not look at load.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

LOOPBACK = "127.0.0.1"


class Node(NamedTuple):
    """One machine.

    Args:
        id: Ray's node id; `local` when Ray is not running.
        address: its IP address.
        total: amount of each resource: CPU and GPU in units, memory in bytes.
        available: what of it no other work holds.
        alive: False once Ray declared it dead.
    """

    id: str
    address: str
    total: Mapping[str, float]
    available: Mapping[str, float]
    alive: bool = True


def local(min_cpus: float | None = None) -> Node:
    """Describe this machine as one node.

    Args:
        min_cpus: offer at least so many CPUs, as `cluster.connect` does when asked to oversubscribe.
    """
    cpus = float(max(num_cpus(), min_cpus or 0))
    total = {"CPU": cpus, "memory": float(memory_bytes())}
    if gpus := num_gpus():
        total["GPU"] = float(gpus)
    return Node("local", LOOPBACK, total, dict(total))


def of_cluster() -> list[Node]:
    """List the live nodes of the cluster this process is connected to, the head first, then by id."""
    import ray

    if ray.util.client.ray.is_connected():
        # Availability by node is known to the cluster, and not passed on by Ray Client: ask from inside.
        remote = ray.remote(num_cpus=0)(_of_cluster)
        nodes: list[Node] = ray.get(remote.remote(), timeout=60)
        return nodes
    return _of_cluster()


def _of_cluster() -> list[Node]:
    import ray
    from ray._private.state import available_resources_per_node

    available = available_resources_per_node()
    raw = [node for node in ray.nodes() if node["Alive"]]
    raw.sort(key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeID"]))
    return [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            _placeable(node["Resources"]),
            _placeable(available.get(node["NodeID"], {})),
        )
        for node in raw
    ]


def _placeable(resources: Mapping[str, Any]) -> dict[str, float]:
    hidden = ("node:", "object_store_memory", "accelerator_type:", "bundle_group_")
    return {
        name: float(amount)
        for name, amount in sorted(resources.items())
        if not name.startswith(hidden) and "_group_" not in name
    }


def num_cpus() -> int:
    """Count the CPUs this process may use: its affinity, cut by a container's quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota(Path("/sys/fs/cgroup"))
    return max(1, min(affinity, int(quota) if quota else affinity))


def _cpu_quota(cgroup: Path) -> float | None:
    """Read a container's CPU limit, cgroup v2 first; None when there is none."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return float(limit) / float(period) if re.fullmatch(r"\d+", limit) else None


def memory_bytes() -> int:
    """Return this machine's memory, cut by a container's limit."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            continue
        if limit.isdigit():
            return min(physical, int(limit))
    return physical


def num_gpus() -> int:
    """Count the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        present = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, sum(1 for part in visible.split(",") if part.strip() not in ("", "-1", "NoDevFiles")))
