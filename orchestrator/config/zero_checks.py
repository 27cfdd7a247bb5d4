"""What cannot be combined with ZeRO, with the reason; also what the user's own DeepSpeed configuration contradicts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.config.checks import Finding
from orchestrator.config.graphs import GraphSection
from orchestrator.config.inputs import Iid
from orchestrator.config.schema import Cluster, Experiment
from orchestrator.config.zero import Zero


def _zero(experiment: Experiment) -> Iterator[Finding]:
    strategy, cluster, data = experiment.strategy, experiment.cluster, experiment.data
    if not isinstance(strategy, Zero):
        return
    kind = (("strategy", "kind"),)
    if strategy.batch_size < strategy.ranks:
        message = f"got {strategy.batch_size} examples for {strategy.ranks} ranks"
        hint = f"strategy.batch_size={strategy.ranks}, or fewer ranks"
        yield Finding(("strategy", "batch_size"), message, hint, (("strategy", "ranks"),))
    if cluster.workers not in (0, Cluster().workers, strategy.ranks):
        message = f"got {cluster.workers}, but each of the {strategy.ranks} ranks is one process"
        hint = f"cluster.workers={strategy.ranks}, or 0 for all of them in this process"
        yield Finding(("cluster", "workers"), message, hint, (("strategy", "ranks"),))
    if isinstance(data, GraphSection):
        message = f"got {data.name!r}, a graph, whose vertices no batch can do without the others"
        yield Finding(("data", "name"), message, "strategy.kind=graph-pipeline", kind)
    elif data.partition != Iid():
        message = f"got {data.partition.kind!r}, which divides examples among clients; ranks share each batch"
        yield Finding(("data", "partition"), message, "leave data.partition out", kind)
    if strategy.stage == "auto" and strategy.rank_memory is None and cluster.address != "local":
        message = "got nothing, but stage auto needs to know what a rank of another machine may hold"
        hint = "strategy.rank_memory=8000000000, in bytes, or strategy.stage=3"
        yield Finding(("strategy", "rank_memory"), message, hint, (("strategy", "stage"), ("cluster", "address")))
    if strategy.precision is not None and experiment.model.dtype != "float32":
        message = f"got 'bf16', but the model's numbers are {experiment.model.dtype}"
        yield Finding(("strategy", "precision"), message, "model.dtype=float32", (("model", "dtype"),))


def _offload(experiment: Experiment) -> Iterator[Finding]:
    strategy = experiment.strategy
    if not isinstance(strategy, Zero):
        return
    here, reads = ("strategy", "offload"), (("strategy", "stage"),)
    if strategy.offload != "none" and strategy.stage == 0:
        message = f"got {strategy.offload!r}, but at stage 0 nothing is shared out that could be moved away"
        yield Finding(here, message, "strategy.stage=1, 2 or 3, or strategy.offload=none", reads)
    if strategy.offload == "nvme":
        if strategy.stage not in (3, "auto"):
            message = f"got 'nvme', but DeepSpeed moves states to a disk at stage 3 only, not at {strategy.stage}"
            yield Finding(here, message, "strategy.stage=3, or strategy.offload=cpu", reads)
        if strategy.nvme_folder is None:
            message = "got nothing, but strategy.offload is nvme"
            path = ("strategy", "nvme_folder")
            yield Finding(path, message, "strategy.nvme_folder=/local_nvme, on every node", (here,))
    elif strategy.nvme_folder is not None:
        message = f"got {strategy.nvme_folder!r}, but strategy.offload is {strategy.offload}"
        yield Finding(("strategy", "nvme_folder"), message, "strategy.offload=nvme, or leave it out", (here,))
    if strategy.offload != "none" and experiment.cluster.workers == 0:
        message = f"got {strategy.offload!r}, but in this process there is no DeepSpeed, and nothing to move away from"
        yield Finding(here, message, "strategy.offload=none, or workers", (("cluster", "workers"),))


# --------------------------------------------------------------------------------------- DeepSpeed's own settings


def _native(experiment: Experiment) -> Iterator[Finding]:
    strategy, here = experiment.strategy, ("strategy", "deepspeed")
    if not isinstance(strategy, Zero) or not strategy.deepspeed:
        return
    try:
        native = native_of(strategy)
    except ValueError as error:
        yield Finding(here, str(error), "a file of DeepSpeed's JSON, or its fields themselves")
        return
    from strategies.zero.native import conflicts

    section = strategy.model_dump(exclude={"deepspeed"})
    for conflict in conflicts(section, native):
        named = ".".join(conflict.path)
        given = json.dumps(conflict.given, default=str)
        reads: Any = (tuple(conflict.field.split(".")),)
        if isinstance(strategy.deepspeed, str):
            message = f"{strategy.deepspeed} says {named}: {given}, but {conflict.field} is {conflict.ours}"
            yield Finding(here, message, f"in {strategy.deepspeed}: {conflict.hint}", reads)
        else:
            message = f"got {given}, but {conflict.field} is {conflict.ours}"
            yield Finding((*here, *conflict.path), message, conflict.hint, reads)


def native_of(strategy: Zero) -> dict[str, Any]:
    """Return the user's own DeepSpeed configuration, read from its file where it is one.

    Raises:
        ValueError: when the file is none, or holds no JSON object.
    """
    if not isinstance(strategy.deepspeed, str):
        return dict(strategy.deepspeed)
    path = Path(strategy.deepspeed).expanduser()
    try:
        native = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"got {strategy.deepspeed!r}, and there is no such file in {Path.cwd()}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"got {strategy.deepspeed!r}, which cannot be read as JSON: {error}") from None
    if not isinstance(native, Mapping):
        raise ValueError(f"got {strategy.deepspeed!r}, which holds {type(native).__name__}, expected an object")
    return dict(native)


ZERO_CHECKS = (_zero, _offload, _native)
