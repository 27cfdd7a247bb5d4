"""What single fields cannot say: combinations that cannot be run, found without torch, Ray or the data.

Each check is a generator over an experiment and is listed in `_CHECKS`; a finding names the field to change and the
other fields it looked at. What needs the data or torch is checked by `orchestrator.preparing`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from orchestrator.config.document import Path
from orchestrator.config.graph_models import GraphModelSection
from orchestrator.config.schema import (
    Cluster,
    Experiment,
    Federated,
    GraphParquet,
    GraphSection,
    Letters,
    Parquet,
    Pipeline,
    Synthetic,
)  # fmt: skip


class Finding(NamedTuple):
    """One combination that cannot be run.

    Args:
        path: the field to change. message: what is given and what was expected. hint: what to type.
        reads: other fields that the finding rests on.
        where: what to name instead of the file's line, such as `environment`.
    """

    path: Path
    message: str
    hint: str = ""
    reads: tuple[Path, ...] = ()
    where: str = ""


def check(experiment: Experiment, raw: Mapping[str, Any]) -> list[Finding]:
    """Return everything about the experiment as a whole that cannot be run.

    Args:
        raw: the values it was made from, as a search needs them to try its candidates.
    """
    from orchestrator.config.grid_checks import check_grid
    from orchestrator.config.search_checks import check_search

    findings = check_itself(experiment)
    if experiment.search is not None:
        findings += check_search(experiment, raw, check_itself, findings)
    if experiment.grid is not None:
        findings += check_grid(experiment, raw, check_itself, findings)
    return findings


def check_itself(experiment: Experiment) -> list[Finding]:
    """Return what cannot be run about an experiment, whatever is searched or tried of it."""
    from orchestrator.config.graph_checks import GRAPH_CHECKS
    from orchestrator.config.local_checks import LOCAL_CHECKS
    from orchestrator.config.sharded_checks import SHARDED_CHECKS
    from orchestrator.config.zero_checks import ZERO_CHECKS

    every = (*_CHECKS, *GRAPH_CHECKS, *LOCAL_CHECKS, *ZERO_CHECKS, *SHARDED_CHECKS)
    return [finding for one in every for finding in one(experiment)]


# ---------------------------------------------------------------------------------------------- clients and data

_NATURAL = ("tiny-shakespeare",)
_BY_CLASS = ("dirichlet", "shards", "classes", "similarity")
_IMAGES = ("digits", "mnist", "fashion-mnist", "emnist-letters", "cifar-10", "cifar-10-jpeg", "letters")


def _clients(experiment: Experiment) -> int | None:
    return None if isinstance(experiment.data, GraphSection) else getattr(experiment.data.partition, "clients", None)


def _cohort(experiment: Experiment) -> Iterator[Finding]:
    if not isinstance(experiment.strategy, Federated):
        return
    cohort, clients = experiment.strategy.algorithm.cohort, _clients(experiment)
    if cohort != "all" and clients is not None and cohort > clients:
        yield Finding(
            ("strategy", "algorithm", "cohort"),
            f"got {cohort}, expected at most the {clients} clients of data.partition",
            f"strategy.algorithm.cohort={clients}, or cohort: all",
            (("data", "partition"),),
        )


def _epochs_or_steps(experiment: Experiment) -> Iterator[Finding]:
    if not isinstance(experiment.strategy, Federated):
        return
    client = experiment.strategy.client
    if client.epochs != 1 and client.steps is not None:  # 1 is what a resolved file says of every run in steps
        yield Finding(
            ("strategy", "client", "steps"),
            f"got steps {client.steps} and epochs {client.epochs}, expected one of the two",
            "strategy.client.epochs=1, its default, or strategy.client.steps=null",
            (("strategy", "client", "epochs"),),
        )


def _steps_of_clients(experiment: Experiment) -> Iterator[Finding]:
    """Three rules read gradients off a client's change, and know how only SGD makes one of the other."""
    if not isinstance(experiment.strategy, Federated):
        return
    name, optimizer = experiment.strategy.algorithm.name, experiment.strategy.client.optimizer
    here, reads = ("strategy", "client", "optimizer"), (("strategy", "algorithm"),)
    if name not in ("scaffold", "fednova", "worker-momentum"):
        return
    if optimizer.name.lower() != "sgd":
        message = f"got {optimizer.name!r}, but {name} reads gradients off steps of plain SGD"
        yield Finding((*here, "name"), message, "strategy.client.optimizer.name=sgd", reads)
    elif name != "fednova" and optimizer.momentum:
        message = f"got {optimizer.momentum:g}, but {name} reads gradients off steps of plain SGD"
        yield Finding((*here, "momentum"), message, "strategy.client.optimizer.momentum=null", reads)
    if odd := sorted(optimizer.kwargs.keys() & {"momentum", "nesterov", "dampening", "maximize"}):
        message = f"got {', '.join(odd)}, which {name} does not reckon with"
        hint = "strategy.client.optimizer.kwargs={}" + (", and momentum beside it" if "momentum" in odd else "")
        yield Finding((*here, "kwargs"), message, hint, reads)


def _best_models(experiment: Experiment) -> Iterator[Finding]:
    clients = experiment.evaluate.clients
    if not isinstance(experiment.strategy, Federated):
        if clients.held_out:
            message = f"got {clients.held_out:g}, but a {experiment.strategy.kind} has no clients"
            path = ("evaluate", "clients", "held_out")
            yield Finding(path, message, "leave evaluate.clients out", (("strategy", "kind"),))
        return
    if clients.keep_best and not clients.held_out:
        here = ("evaluate", "clients", "keep_best")
        message = "got true, but held_out is 0, so no client's model is measured"
        yield Finding(here, message, "evaluate.clients.held_out=0.2", (("evaluate", "clients", "held_out"),))


def _partition_of_data(experiment: Experiment) -> Iterator[Finding]:
    data = experiment.data
    if isinstance(data, GraphSection):
        return
    partition = data.partition
    name = getattr(data, "name", "target")
    here = ("data", "partition", "kind")
    around = (("data", "name"), ("data", "target"))
    if partition.kind == "column":
        if isinstance(data, Parquet) and data.client is None:
            hint = "data.client=COLUMN, or data.partition={kind: iid, clients: 10}"
            yield Finding(here, "got 'column', but data.client names no column", hint, (*around, ("data", "client")))
        elif name not in (*_NATURAL, "parquet", "target"):
            hint = "data.partition={kind: iid, clients: 10}, or kind dirichlet or shards"
            yield Finding(here, f"got 'column', but {name} has no clients of its own", hint, around)
    elif partition.kind in _BY_CLASS and name in _NATURAL:
        hint = "data.partition={kind: column}, or {kind: iid, clients: 10}"
        yield Finding(here, f"got {partition.kind!r}, which needs a class per example; {name} is text", hint, around)


def _enough_examples(experiment: Experiment) -> Iterator[Finding]:
    data, clients = experiment.data, _clients(experiment)
    if clients is None or isinstance(data, GraphSection) or not isinstance(experiment.strategy, Federated):
        return
    generated = data.examples if isinstance(data, Synthetic | Letters) else None
    if data.limit is not None and generated is not None and data.limit > generated:
        message = f"got {data.limit}, expected at most the {generated} of data.examples"
        yield Finding(("data", "limit"), message, f"data.limit={generated}, or null", (("data", "examples"),))
        return
    known = data.limit if data.limit is not None else generated
    if data.partition.kind == "drawn":  # whose clients may share examples
        if known is not None and known < data.partition.examples:
            message = f"got {data.partition.examples} examples of each client, expected at most the {known} there are"
            here, reads = ("data", "partition", "examples"), (("data", "limit"), ("data", "examples"))
            yield Finding(here, message, f"data.partition.examples={known}", reads)
        return
    each = getattr(data.partition, "min_size", getattr(data.partition, "shards_per_client", 1))
    if known is not None and known < clients * each:
        field = "data.limit" if data.limit is not None else "data.examples"
        yield Finding(
            ("data", "partition", "clients"),
            f"got {clients} clients that need {clients * each} examples, but {field} is {known}",
            f"data.partition.clients={max(1, known // each)}, or {field}={clients * each}",
            (("data", "limit"), ("data", "examples"), ("data", "partition")),
        )


def _model_of_data(experiment: Experiment) -> Iterator[Finding]:
    name, model = getattr(experiment.data, "name", "target"), getattr(experiment.model, "name", "target")
    if "target" in (name, model) or isinstance(experiment.data, GraphSection):
        return
    here, reads = ("model", "name"), (("data",),)
    shape = getattr(experiment.data, "shape", None)
    images = (
        name in _IMAGES or getattr(experiment.data, "kind", "") == "images" or (shape is not None and len(shape) == 3)
    )
    if isinstance(experiment.model, GraphModelSection):
        return
    if model == "transformer" and name != "tiny-shakespeare":
        hint = f"model.name={'cnn' if images else 'mlp'}, or data.name=tiny-shakespeare"
        yield Finding(here, f"got 'transformer', which predicts text; {name} is none", hint, reads)
    elif model != "transformer" and name == "tiny-shakespeare":
        yield Finding(here, f"got {model!r}, but {name} is text, to be predicted", "model={name: transformer}", reads)
    elif model in ("cnn", "bristle-cnn", "resnet", "vgg", "vit") and not images:
        what = "has no shape [channels, height, width]" if name == "parquet" else "has no images"
        hint = "data.shape=[1, 28, 28], or model={name: mlp}" if name == "parquet" else "model={name: mlp}"
        yield Finding(here, f"got {model!r}, which needs images; {name} {what}", hint, reads)


def _pretrain(experiment: Experiment) -> Iterator[Finding]:
    asked, here = experiment.model.pretrain, ("model", "pretrain")
    if asked is not None and experiment.model.weights is not None:
        message = f"got {experiment.model.weights!r}, but model.pretrain trains the weights that the run begins with"
        yield Finding(("model", "weights"), message, "model.weights=null, or model.pretrain=null", (here,))
    if asked is None or isinstance(asked.data, GraphSection):
        return
    for name in ("freeze", "output"):
        pattern = getattr(asked, name)
        try:
            re.compile(pattern or "")
        except re.error as error:
            message = f"got {pattern!r}, which is no regular expression: {error}"
            yield Finding((*here, name), message, f"model.pretrain.{name}='^body', or null")
    text = [getattr(section, "name", "") in _NATURAL for section in (asked.data, experiment.data)]
    if text[0] != text[1] and not any(hasattr(section, "target") for section in (asked.data, experiment.data)):
        names = [getattr(section, "name", "") for section in (asked.data, experiment.data)]
        message = f"got {names[0]!r}, but the run trains on {names[1]}, and only one of them is text"
        yield Finding((*here, "data", "name"), message, f"model.pretrain.data={{name: {names[1]}}}", (("data",),))
    generated = getattr(asked.data, "examples", None)
    if asked.data.limit is not None and generated is not None and asked.data.limit > generated:
        message = f"got {asked.data.limit}, expected at most the {generated} of model.pretrain.data.examples"
        reads = ((*here, "data", "examples"),)
        yield Finding((*here, "data", "limit"), message, f"model.pretrain.data.limit={generated}, or null", reads)


# ----------------------------------------------------------------------------------------------------- pipeline


def _pipeline(experiment: Experiment) -> Iterator[Finding]:
    strategy = experiment.strategy
    if not isinstance(strategy, Pipeline):
        return
    here = ("strategy", "partition")
    if not isinstance(strategy.partition, str) and len(strategy.partition) != strategy.num_positions:
        chunked = f" and {strategy.chunks} chunks" if strategy.num_positions != strategy.stages else ""
        message = f"got {len(strategy.partition)} numbers of layers for {strategy.stages} stages{chunked}"
        yield Finding(here, message, f"give {strategy.num_positions}, or time", (("strategy", "stages"),))
    if strategy.batch_size < strategy.replicas:
        message = f"got {strategy.batch_size} examples for {strategy.replicas} replicas"
        hint = f"strategy.batch_size={strategy.replicas}"
        yield Finding(("strategy", "batch_size"), message, hint, (("strategy", "replicas"),))
    if strategy.shard_optimizer and strategy.replicas == 1:
        message = "got true, but one replica has nobody to share with"
        hint = "strategy.replicas=2, or strategy.shard_optimizer=false"
        yield Finding(("strategy", "shard_optimizer"), message, hint, (("strategy", "replicas"),))
    if strategy.schedule == "interleaved" and strategy.chunks < 2:
        message = f"got {strategy.chunks}, but interleaved stages have at least 2"
        yield Finding(("strategy", "chunks"), message, "strategy.chunks=2, or strategy.schedule=1f1b")
    if strategy.schedule == "zero-bubble-v" and strategy.chunks != 2:
        message = f"got {strategy.chunks}, but zero-bubble-v has 2 parts of the model on each stage"
        hint = "strategy.chunks=2, or strategy.schedule=interleaved"
        yield Finding(("strategy", "chunks"), message, hint, (("strategy", "schedule"),))
    if strategy.recompute == "fit" and strategy.stage_memory is None:
        message = "got 'fit', but strategy.stage_memory says no limit"
        yield Finding(("strategy", "stage_memory"), message, "strategy.stage_memory=2000000000, in bytes")
    yield from of_ranks(experiment, strategy.num_ranks, f"{strategy.replicas} replicas", "replicas")


def of_ranks(experiment: Experiment, num_ranks: int, others: str, field: str) -> Iterator[Finding]:
    """Hold the number of workers, where one is said, against that of ranks."""
    workers = experiment.cluster.workers
    if workers not in (0, Cluster().workers, num_ranks):
        stages = getattr(experiment.strategy, "stages", 1)
        message = f"got {workers}, but {stages} stages x {others} are one process each"
        hint = f"cluster.workers={num_ranks}, or 0 for all of them in this process"
        yield Finding(("cluster", "workers"), message, hint, (("strategy", "stages"), ("strategy", field)))


# ------------------------------------------------------------------------------------------------------ cluster

_KNOWN_RESOURCES = ("CPU", "GPU", "memory")
_GRAIN = 1e-4
_ADDRESS = re.compile(r"^(?P<ray>ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(?P<port>\d+)$")


def _address(experiment: Experiment) -> Iterator[Finding]:
    address, here = experiment.cluster.address, ("cluster", "address")
    if address in ("local", "auto"):
        return
    message = f"got {address!r}, expected local, auto, ray://host:port or host:port"
    found = _ADDRESS.match(address)
    if re.match(r"^https?://", address):
        hint = f"that is a job server's address: orchestrator submit EXP --address {address}"
        yield Finding(here, message, hint)
    elif found is None:
        near = difflib.get_close_matches(address.lower(), ("local", "auto"), n=1)
        if near:
            hint = f"did you mean {near[0]!r}?"
        else:
            bare = re.fullmatch(r"(ray://)?[A-Za-z0-9._-]+", address)
            port = "10001" if address.startswith("ray://") else "6379"
            hint = f"did you mean {address}:{port}?" if bare else "such as: ray://head:10001 or head:6379"
        yield Finding(here, message, hint)
    elif not 1 <= int(found["port"]) <= 65535:
        yield Finding(here, f"got port {found['port']}, expected 1 to 65535", "such as: ray://head:10001 or head:6379")


def _workers(experiment: Experiment) -> Iterator[Finding]:
    cluster = experiment.cluster
    if cluster.workers == 0 and cluster.address != "local":
        yield Finding(
            ("cluster", "workers"),
            f"got 0, which trains in this process, but cluster.address is {cluster.address!r}",
            "cluster.workers=2, or cluster.address=local",
            (("cluster", "address"),),
        )
    if cluster.device == "cuda" and cluster.workers > 0 and not cluster.resources_per_worker.get("GPU"):
        yield Finding(
            ("cluster", "device"),
            "got 'cuda', but cluster.resources_per_worker reserves no GPU",
            "cluster.resources_per_worker={CPU: 1, GPU: 1}, or cluster.device=cpu",
            (("cluster", "resources_per_worker"), ("cluster", "workers")),
        )


def _resources(experiment: Experiment) -> Iterator[Finding]:
    for name, amount in experiment.cluster.resources_per_worker.items():
        here = ("cluster", "resources_per_worker", name)
        proper = next((known for known in _KNOWN_RESOURCES if known.lower() == name.lower()), name)
        if name.lower() in ("num_cpus", "cpus", "num_gpus", "gpus"):
            proper = "GPU" if "g" in name.lower() else "CPU"
        if proper != name:
            yield Finding(here, f"unknown resource {name!r}", f"did you mean {proper!r}?")
        elif name == "object_store_memory" or not re.fullmatch(r"[A-Za-z][\w.:-]*", name):
            yield Finding(here, f"{name!r} cannot be reserved", f"known: {', '.join(_KNOWN_RESOURCES)}, or your own")
        elif name == "GPU" and amount > 1 and amount % 1:
            yield Finding(here, f"got {amount:g}, expected a whole number or at most 1", f"{'.'.join(here)}=1")
        elif amount < _GRAIN or amount > 2**53:
            yield Finding(here, f"got {amount:g}, expected 0.0001 to 2^53, as Ray counts", f"{'.'.join(here)}=1")


# ------------------------------------------------------------------------------------------- storage, tracking

_SCHEMES = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")


def _uris(experiment: Experiment) -> Iterator[Finding]:
    uris: dict[Path, str | None] = {("checkpoint", "storage"): experiment.checkpoint.storage}
    first = experiment.model.pretrain
    for path, section in ((("data",), experiment.data), (("model", "pretrain", "data"), first and first.data)):
        if isinstance(section, Parquet):
            uris |= {(*path, "path"): section.path, (*path, "test_path"): section.test_path}
        elif isinstance(section, GraphParquet):
            uris |= {(*path, "edges"): section.edges, (*path, "vertices"): section.vertices}
    for path, uri in uris.items():
        scheme = re.match(r"^([^/]*?):/", uri or "")
        if scheme and scheme[1] not in _SCHEMES:
            near = difflib.get_close_matches(scheme[1].lower(), _SCHEMES, n=1)
            hint = (
                f"did you mean {near[0]}://?" if near else f"known: a path, or {', '.join(f'{s}://' for s in _SCHEMES)}"
            )
            yield Finding(path, f"got {uri!r}, whose scheme {scheme[1]!r} is no file system here", hint)
    root = experiment.storage.root
    if "://" in root:
        yield Finding(
            ("storage", "root"), f"got {root!r}, expected a folder", "checkpoints may go there: checkpoint.storage=URI"
        )


def _tracking(experiment: Experiment) -> Iterator[Finding]:
    from orchestrator.tracking_uri import check as check_uri

    for problem in check_uri(experiment.tracking):
        where = "environment" if problem.where == "environment" else ""
        yield Finding(tuple(problem.path.split(".")), problem.message, problem.hint, where=where)


_CHECKS = (
    _cohort, _epochs_or_steps, _steps_of_clients, _best_models, _pipeline, _partition_of_data, _enough_examples,
    _model_of_data, _pretrain, _address, _workers, _resources, _uris, _tracking,
)  # fmt: skip
