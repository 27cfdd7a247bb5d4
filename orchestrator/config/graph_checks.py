"""What cannot be combined with graphs: data of rows, models of examples, and a gang that does not fit together."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.checks import Finding, of_ranks
from orchestrator.config.graph_models import GraphModelSection
from orchestrator.config.graph_pipeline import GraphPipeline
from orchestrator.config.graphs import GraphSection
from orchestrator.config.inputs import DataSection, Iid, OwnData, Planetoid
from orchestrator.config.schema import Experiment

GRAPH_STRATEGIES = ("graph-pipeline",)
"""Kinds of strategies that train on a graph; all others train on rows."""


def check_graph(experiment: Experiment) -> Iterator[Finding]:
    """Refuse graphs where rows are needed, rows where a graph is, and what only divides rows."""
    data, kind = experiment.data, experiment.strategy.kind
    reads = (("strategy", "kind"),)
    here = ("data", "name")
    if kind not in GRAPH_STRATEGIES:
        if isinstance(data, GraphSection):
            message = f"got {data.name!r}, which is a graph, but a {kind} strategy trains on rows"
            yield Finding(here, message, "strategy.kind=graph-pipeline, or data={name: synthetic}", reads)
    elif not isinstance(data, GraphSection | Planetoid | OwnData):
        message = f"got {data.name!r}, which has no edges, but a {kind} strategy trains on a graph"
        yield Finding(here, message, "data={name: sbm}, cora, graph-parquet or another graph, or data.target", reads)
    elif isinstance(data, DataSection):
        yield from _only_of_rows(data, kind)
    first = experiment.model.pretrain
    if first is not None and isinstance(first.data, GraphSection):
        message = f"got {first.data.name!r}, which is a graph, but models are first trained on rows"
        yield Finding(("model", "pretrain", "data", "name"), message, "model.pretrain.data={name: synthetic}")


def _only_of_rows(data: DataSection, kind: str) -> Iterator[Finding]:
    reads = (("strategy", "kind"),)
    if data.limit is not None:
        message = f"got {data.limit}, but a {kind} strategy trains on all training vertices of the graph"
        yield Finding(("data", "limit"), message, "data.limit=null", reads)
    if data.partition != Iid():
        message = f"got {data.partition.kind!r}, which divides examples among clients; a {kind} has none"
        yield Finding(("data", "partition"), message, "leave data.partition out", reads)


def _model_of_strategy(experiment: Experiment) -> Iterator[Finding]:
    model, kind = experiment.model, experiment.strategy.kind
    if isinstance(model, GraphModelSection) and kind != "graph-pipeline":
        message = f"got {model.name!r}, which aggregates over a whole graph, but a {kind} strategy trains on examples"
        hint = "strategy.kind=graph-pipeline, or a model of examples such as model={name: mlp}"
        yield Finding(("model", "name"), message, hint, (("strategy", "kind"),))


def _graph_pipeline(experiment: Experiment) -> Iterator[Finding]:
    strategy = experiment.strategy
    if not isinstance(strategy, GraphPipeline):
        return
    if not isinstance(strategy.partition, str) and len(strategy.partition) != strategy.stages:
        message = f"got {len(strategy.partition)} numbers of layers for {strategy.stages} stages"
        hint = f"give {strategy.stages}, or time"
        yield Finding(("strategy", "partition"), message, hint, (("strategy", "stages"),))
    if experiment.cluster.device == "cuda" and experiment.cluster.workers:
        message = "got 'cuda', but ranks of a graph pipeline exchange rows through gloo, which takes tensors of the CPU"
        yield Finding(("cluster", "device"), message, "cluster.device=cpu, or cluster.workers=0")
    yield from of_ranks(experiment, strategy.num_ranks, f"{strategy.ways} ways", "ways")


GRAPH_CHECKS = (check_graph, _model_of_strategy, _graph_pipeline)
