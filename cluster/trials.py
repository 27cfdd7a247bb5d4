"""Places for the trials of a Ray Tune search, counted before it starts, and Ray Tune kept to its own business.

A trial is a process on this node, where the search keeps its files, and workers anywhere. It holds all of them in one
placement group, which `pool.RayExecutor` then takes its bundles from. Left out: what a trial does.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster import inventory, placement
from cluster.errors import PlacementFailed

_GRAIN = 0.001  # of a node's own resource, whose only use is to name the node
_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}
_LOGGERS = ("ray.tune", "ray.train", "ray.air")


def fitting(resources: Mapping[str, float], num_workers: int, strategy: placement.Strategy, wanted: int) -> int:
    """Return how many of the wanted trials fit at once on idle nodes, at least 1.

    Args:
        resources: of a worker; of the trial's own process when it has no workers.

    Raises:
        PlacementFailed: not even one fits; need versus have.
    """
    import ray

    nodes, count = inventory.of_cluster(), num_workers
    if not count:
        nodes, count = [node for node in nodes if node.id == ray.get_runtime_context().get_node_id()], 1
    one = placement.place([resources] * count, nodes, strategy)
    if not one.fits:
        raise PlacementFailed(f"not even one trial fits: {placement.reason(one, len(nodes))}", placement.table(one))
    return max(1, placement.place([resources] * (count * wanted), nodes, strategy).num_placed // count)


def group(resources: Mapping[str, float], num_workers: int, strategy: placement.Strategy) -> Any:
    """Return what one trial holds, as Ray Tune wants it: a bundle for its process, and one for each worker."""
    import ray
    from ray.tune import PlacementGroupFactory

    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    name = next(name for name in node["Resources"] if name.startswith("node:") and name != "node:__internal_head__")
    process = {name: _GRAIN, **({} if num_workers else resources)}
    return PlacementGroupFactory([process, *(dict(resources) for _ in range(num_workers))], strategy=strategy.upper())


@contextmanager
def quiet_tune() -> Iterator[None]:
    """Keep Ray Tune from taking over terminal, signals and working folders inside the `with` block."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    os.environ.update(_SETTINGS)
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
