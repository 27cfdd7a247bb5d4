"""What passes between a gang's driver, its hub and Ray Train: the plan, who the ranks are, and what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import psutil

from cluster import inventory
from cluster.errors import PlacementFailed
from cluster.gang_rank import Task


class Plan(NamedTuple):
    """What Ray Train is asked for.

    Args:
        task: for every rank. num_ranks, resources, strategy: as in `Gang`.
        backend: of torch.distributed. environment: variables set in each rank's process from its start.
        start_timeout_s, group_timeout_s: for places, and for one operation of the process group.
    """

    task: Task
    num_ranks: int
    resources: Mapping[str, float]
    strategy: str
    backend: str
    environment: Mapping[str, str]
    start_timeout_s: float
    group_timeout_s: float


class Member(NamedTuple):
    """A rank, where it runs, and Ray's handle of its actor."""

    rank: int
    node: str
    pid: int
    actor: Any


class Event(NamedTuple):
    """What happened: `placed` (value: members), `began`, `report`, `returned` (of a rank), `failed`, `ended`."""

    kind: str
    rank: int = -1
    value: Any = None


def environment(threads: int) -> dict[str, str]:
    """Return the variables that ranks need before they import anything."""
    found = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Huge pages for tensors of 2 MiB and more: an epoch of a graph network on 100,000 vertices took a quarter less.
    found["THP_MEM_ALLOC_ENABLE"] = "1"
    if all(node.address.startswith("127.") for node in inventory.of_cluster()):
        found["GLOO_SOCKET_IFNAME"] = _loopback()  # gloo would listen where this host's name leads, if anywhere
    return found


def _loopback() -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == inventory.LOOPBACK for one in addresses):
            return str(name)
    raise PlacementFailed(f"no network interface has the address {inventory.LOOPBACK}, at which this cluster listens")
