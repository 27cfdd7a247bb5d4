"""Which layers and vertices each rank of a graph pipeline gets, and what an epoch is then expected to cost.

The layers are measured on one chunk (`trainers.graph.costs`) and cut so that the largest stage is as small as it
can be; the vertices are cut by METIS. Bytes are computed from the cuts, to the byte; the time is the schedule on paper
with the measured times, all chunks taken for equal, without transfers; where chunks are computed again, what that takes
is measured, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from orchestrator.config import Origins
from orchestrator.config.graph_pipeline import GraphPipeline
from orchestrator.config.memory import plain
from orchestrator.config.schema import Experiment
from orchestrator.errors import ConfigError, Problem
from orchestrator.gang_settings import shared
from orchestrator.memory_checks import insist_parts
from orchestrator.preparing import Prepared
from strategies.graph import Graph, Layout, exchange_bytes, halo_rows, pipeline_bytes, propagation, ring_bytes
from strategies.pipeline import Costs, Simulation, balance, gpipe, simulate
from trainers.data.graphs.base import GraphData
from trainers.graph.convolutions import graph_chain
from trainers.graph.costs import GraphLayerCost, measure
from trainers.graph.exchange import NUM_MESSAGES
from trainers.graph.rank import divided
from trainers.graph.settings import Settings
from trainers.models import ModelError
from trainers.pipeline.chunk import LayerFailed
from trainers.pipeline.transport import NUM_MICROBATCHES


class Epoch(NamedTuple):
    """Bytes of one epoch, over all ranks.

    Args:
        boundary: between stages. exchange: rows and gradients between ways.
        weights: summing the weights' gradients over ways, by the formula of a ring.
        replicas: mean number of other ways that need a vertex.
    """

    boundary: int
    exchange: int
    weights: int
    replicas: float


class Chunks(NamedTuple):
    """How much of the graph is where.

    Args:
        edges: those that lead into each chunk, way by way.
        between_chunks: edges between chunks of different slots, of which one end is not up to date in some orders.
        between_ways: edges between ways, chunks of one slot included.
        halo_forward, halo_backward: rows that each way gets from the others in one aggregation, and gradients.
    """

    edges: tuple[int, ...]
    between_chunks: int
    between_ways: int
    halo_forward: tuple[int, ...]
    halo_backward: tuple[int, ...]


class GraphStages(NamedTuple):
    """A model and a graph cut for a gang.

    Args:
        layers: of each stage. cut: of the vertices. chunks: what the cut comes to.
        costs: of each layer, for one chunk. epoch: expected bytes. predicted: an epoch on paper.
    """

    layers: tuple[int, ...]
    cut: Layout
    chunks: Chunks
    costs: tuple[GraphLayerCost, ...]
    epoch: Epoch
    predicted: Simulation

    def of_stage(self, stage: int) -> tuple[GraphLayerCost, ...]:
        start = sum(self.layers[:stage])
        return self.costs[start : start + self.layers[stage]]


def divide(prepared: Prepared, where: Origins | None = None) -> GraphStages:
    """Measure the layers and cut model and graph.

    Raises:
        ConfigError: when the model is no chain, or has fewer layers or the graph fewer vertices than asked for, or when
            there are more messages than can be told apart.
    """
    experiment, origins = prepared.experiment, where or Origins()
    strategy, data = experiment.strategy, prepared.dataset
    assert isinstance(strategy, GraphPipeline) and isinstance(data, GraphData)
    settings = settings_of(experiment, (1,))
    try:
        cut = divided(settings, data)
    except ValueError as error:
        path, count = "strategy.chunks", strategy.slots * strategy.ways
        told = f"{strategy.slots} for each of {strategy.ways} ways, {count} in all"
        message = f"got {told}, more than the {data.num_vertices:,} vertices of {data.name}"
        raise ConfigError([Problem(origins(path), path, message, "fewer chunks, ways or stages")]) from error
    try:
        costs = measure(prepared.model, data, settings, threads=experiment.cluster.threads_per_worker)
    except ModelError as error:
        raise ConfigError([Problem(origins("model"), "model", error.message, error.hint)]) from error
    except LayerFailed as error:
        raise ConfigError([Problem(origins("model"), "model", str(error), "tried on one chunk")]) from error
    named = {layer.index: (layer.name, layer.module) for layer in graph_chain(prepared.model).layers}
    insist_parts(strategy.memory, named, origins)
    try:
        layers = _cut(strategy, costs)
    except ValueError as error:
        path = "strategy.partition" if not isinstance(strategy.partition, str) else "strategy.stages"
        hint = f"the model has {len(costs)} layers"
        raise ConfigError([Problem(origins(path), path, str(error), hint)]) from error
    if told := _too_many(strategy, layers, costs):
        path = "strategy.chunks"
        raise ConfigError([Problem(origins(path), path, told, "fewer chunks, or more stages")])
    chunks = _chunks(data, cut)
    epoch = _bytes(itemsize(experiment), layers, cut, chunks, costs)
    return GraphStages(layers, cut, chunks, tuple(costs), epoch, _predict(layers, costs, cut))


def itemsize(experiment: Experiment) -> int:
    """Return the bytes of one number of weights and rows."""
    return 8 if experiment.model.dtype == "float64" else 4


def settings_of(experiment: Experiment, layers: tuple[int, ...]) -> Settings:
    """Return what every rank is told."""
    strategy = experiment.strategy
    assert isinstance(strategy, GraphPipeline)
    return Settings(
        **shared(experiment),
        stages=strategy.stages,
        ways=strategy.ways,
        slots=strategy.slots,
        chunking=strategy.chunking,
        layers=layers,
        shuffle=strategy.shuffle,
        refresh=strategy.refresh,
        correction=strategy.correction,
        recompute=strategy.recompute,
        kernel=strategy.kernel,
        clip_norm=strategy.clip_norm,
        epochs=strategy.epochs,
        patience=strategy.patience,
        memory=plain(strategy.memory),
    )


def summarise(experiment: Experiment, stages: GraphStages) -> dict[str, Any]:
    """Return the cuts and what is expected of an epoch, ready for JSON."""
    strategy = experiment.strategy
    assert isinstance(strategy, GraphPipeline)
    rows = [
        {
            "layers": [cost.name for cost in stages.of_stage(stage)],
            "forward_s": sum(cost.forward_s for cost in stages.of_stage(stage)),
            "backward_s": sum(cost.backward_s for cost in stages.of_stage(stage)),
            "num_parameters": sum(cost.num_parameters for cost in stages.of_stage(stage)),
        }
        for stage in range(strategy.stages)
    ]
    return {
        "kind": "graph-stages",
        "schedule": "gpipe",
        "ways": strategy.ways,
        "layers": list(stages.layers),
        "num_microbatches": strategy.slots,
        "chunk_vertices": [int(size) for size in stages.cut.sizes()],
        "chunk_edges": list(stages.chunks.edges),
        "edges_between_chunks": stages.chunks.between_chunks,
        "edges_between_ways": stages.chunks.between_ways,
        "stages": rows,
        "bytes": stages.epoch._asdict(),
        "predicted_s": float(stages.predicted.makespan_s),
        "predicted_bubble": float(stages.predicted.bubble),
    }


# ---------------------------------------------------------------------------------------------------- the parts


def _cut(strategy: GraphPipeline, costs: list[GraphLayerCost]) -> tuple[int, ...]:
    if isinstance(strategy.partition, str):
        return tuple(balance([cost.forward_s + cost.backward_s + cost.again_s for cost in costs], strategy.stages))
    if sum(strategy.partition) != len(costs):
        raise ValueError(f"{strategy.partition} are {sum(strategy.partition)} layers, the model has {len(costs)}")
    return tuple(strategy.partition)


def _too_many(strategy: GraphPipeline, layers: tuple[int, ...], costs: list[GraphLayerCost]) -> str:
    """Return what of an epoch a transport could not number; nothing where it can."""
    if strategy.stages > 1 and strategy.slots > NUM_MICROBATCHES:
        return f"got {strategy.slots:,}, expected at most {NUM_MICROBATCHES:,}, which messages can tell apart"
    starts = [sum(layers[:stage]) for stage in range(len(layers))]
    sites = max(sum(len(cost.sites) for cost in costs[a : a + n]) for a, n in zip(starts, layers, strict=True))
    most = NUM_MESSAGES // (sites * strategy.ways) - 1 if sites else strategy.slots
    if strategy.ways == 1 or strategy.slots <= most:
        return ""
    told = f"{strategy.ways} ways and {sites:,} aggregations of a stage"
    return f"got {strategy.slots:,}, expected at most {most:,} with {told}, which messages can tell apart"


def _chunks(data: GraphData, cut: Layout) -> Chunks:
    graph = Graph(np.asarray(data.indptr), np.asarray(data.indices))
    ways = range(cut.ways)
    chunk_of = np.empty(cut.num_vertices, np.int64)
    chunk_of[cut.order] = np.repeat(np.arange(cut.num_chunks), cut.sizes())
    into = np.repeat(chunk_of, graph.in_degrees())
    out = chunk_of[graph.indices]
    if cut.ways > 1:
        matrix = propagation(graph, "sum")
        ahead, back = (tuple(map(int, halo_rows(each, cut))) for each in (matrix, matrix.T.tocsr()))
    else:
        ahead = back = tuple(0 for _ in ways)
    return Chunks(
        edges=tuple(np.bincount(into, minlength=cut.num_chunks).tolist()),
        between_chunks=int((into % cut.slots != out % cut.slots).sum()),
        between_ways=int((into // cut.slots != out // cut.slots).sum()),
        halo_forward=ahead,
        halo_backward=back,
    )


def _bytes(size: int, layers: tuple[int, ...], cut: Layout, chunks: Chunks, costs: list[GraphLayerCost]) -> Epoch:
    ends = [sum(layers[: stage + 1]) - 1 for stage in range(len(layers) - 1)]
    widths = [sum(costs[end].output_widths) for end in ends]
    returned = [sum(costs[end].returned_widths) for end in ends]
    sites = [site for cost in costs for site in cost.sites]
    ahead, back = sum(chunks.halo_forward), sum(chunks.halo_backward)
    to, fro = [width for width, _ in sites], [width for width, returns in sites if returns == "read by"]
    read = [width for width, returns in sites if returns == "read"]
    return Epoch(
        boundary=pipeline_bytes(widths, returned, cut.num_vertices, size),
        exchange=exchange_bytes(ahead, back, to, fro, size) + exchange_bytes(0, ahead, [], read, size),
        weights=ring_bytes(sum(cost.num_parameters for cost in costs), cut.ways, size),
        replicas=ahead / cut.num_vertices,
    )


def _predict(layers: tuple[int, ...], costs: list[GraphLayerCost], cut: Layout) -> Simulation:
    starts = [sum(layers[:stage]) for stage in range(len(layers) + 1)]
    own = [costs[starts[stage] : starts[stage + 1]] for stage in range(len(layers))]
    return simulate(
        gpipe(len(layers), cut.slots),
        Costs(
            forward_s=[sum(cost.forward_s for cost in each) for each in own],
            backward_s=[sum(cost.backward_s for cost in each) for each in own],
            recompute_s=[sum(cost.again_s for cost in each) for each in own],
        ),
    )
