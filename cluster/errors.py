"""Failures of the cluster, free of any wording for users; `orchestrator` turns them into its own errors."""

from __future__ import annotations


class ClusterError(Exception):
    """Base of what this package raises."""


class Unreachable(ClusterError):
    """No Ray cluster answers at an address."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason


class PlacementFailed(ClusterError):
    """Workers cannot be placed: `table` says need versus have, `reason` in one sentence why."""

    def __init__(self, reason: str, table: str = "") -> None:
        super().__init__(reason, table)
        self.reason = reason
        self.table = table


class RemoteFailure(ClusterError):
    """A call failed on a worker.

    Args:
        reason: one line, such as `ValueError: bad shape`.
        worker: `worker 1`.
        node: the node's address, empty in process.
        call_index: position of the call in the list given to `Executor.run`.
        remote_traceback: the worker's traceback as text; empty when the process was lost.
        lost: True when the process or node disappeared rather than raised.
    """

    def __init__(
        self, reason: str, worker: str, node: str, call_index: int, remote_traceback: str = "", lost: bool = False
    ) -> None:
        super().__init__(reason, worker, node, call_index, remote_traceback, lost)
        self.reason = reason
        self.worker = worker
        self.node = node
        self.call_index = call_index
        self.remote_traceback = remote_traceback
        self.lost = lost
