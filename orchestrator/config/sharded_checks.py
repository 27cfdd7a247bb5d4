"""What of a sharded strategy cannot be run, found without torch or the model."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.checks import Finding
from orchestrator.config.inputs import Iid
from orchestrator.config.schema import Cluster, DataSection, Experiment, Sharded

_WHOLE = ("adafactor", "muon")
"""Optimizers whose step of one number asks for others of its tensor."""


def _sharded(experiment: Experiment) -> Iterator[Finding]:
    strategy, data = experiment.strategy, experiment.data
    if not isinstance(strategy, Sharded):
        return
    here, axes = ("strategy", "mesh"), len(strategy.mesh)
    if isinstance(data, DataSection) and data.partition != Iid():
        message = f"got {data.partition.kind!r}, which divides examples among clients; a sharded run has none"
        yield Finding(("data", "partition"), message, "leave data.partition out", (("strategy", "kind"),))
    for pattern, given in strategy.placements.items() if isinstance(strategy.placements, dict) else ():
        if len(given) not in (1, axes):
            message = f"got {len(given)} placements for the {axes} axes of strategy.mesh"
            hint = "one an axis, or the last axis's alone"
            yield Finding(("strategy", "placements", pattern), message, hint, (here,))
    for axis in strategy.batch_axes or ():
        if axis >= axes or (strategy.batch_axes or []).count(axis) > 1:
            message = f"got axis {axis}, expected 0 to {axes - 1}, each once"
            yield Finding(("strategy", "batch_axes"), message, "", (here,))
            break
    if strategy.optimizer.name.lower() in _WHOLE and strategy.num_ranks > 1 and strategy.placements != {}:
        message = f"got {strategy.optimizer.name!r}, whose steps need whole matrices, and here ranks hold pieces"
        hint = "adamw, sgd, lamb; or strategy.placements={}, where all ranks hold all"
        yield Finding(("strategy", "optimizer", "name"), message, hint, (("strategy", "placements"),))
    workers = experiment.cluster.workers
    if workers not in (0, Cluster().workers, strategy.num_ranks):
        message = f"got {workers}, but the mesh has {strategy.num_ranks} ranks, and each is one process"
        hint = f"cluster.workers={strategy.num_ranks}, or 0 for the same steps on whole tensors in this process"
        yield Finding(("cluster", "workers"), message, hint, (here,))


SHARDED_CHECKS = (_sharded,)
"""Checks of experiments with sharded layouts."""
