"""What a graph pipeline would do, before it does it: the cuts of model and graph, bytes, bubble, time and memory.

The layers are measured in this process, on one chunk; nothing is started. See `orchestrator.graph_stages` for what
the prediction leaves out. Memory is an estimate: the first chunk stands for all, and what torch's libraries keep is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple, TypeVar

import torch

from orchestrator.config import Loaded
from orchestrator.config.schema import GraphPipeline
from orchestrator.gang_plan import GangPlan, common, milliseconds
from orchestrator.graph_stages import GraphStages, divide, itemsize
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from strategies.graph import bubble, memory_bytes
from strategies.pipeline import timeline
from trainers import optimizers
from trainers.data.graphs.base import GraphData

HINT = "strategy.stages=N, strategy.ways=1, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0"
_LEGEND = "F2: forward of an epoch's chunk 2; B2: its backward; '=' goes on with the action; a dot: the stage waits."

T = TypeVar("T")


class RankMemory(NamedTuple):
    """Bytes of one rank, by what holds them.

    Args:
        weights: with gradients, what the optimizer remembers, and the best ones so far.
        tables: rows, history and gradients of every aggregation. graph: matrices, and features on the first stage.
        activations: what autograd keeps of all chunks.
    """

    weights: int
    tables: int
    activations: int
    graph: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True, kw_only=True)
class GraphPlan(GangPlan):
    """What a graph pipeline would do.

    Args:
        memory: of each rank, `ways * stage + way`.
    """

    stages: GraphStages
    memory: tuple[RankMemory, ...]

    @property
    def strategy(self) -> GraphPipeline:
        strategy = self.experiment.strategy
        assert isinstance(strategy, GraphPipeline)
        return strategy

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """As `GangPlan.sections`."""
        yield "stages, from layers measured on one chunk on this machine", list(self._stages())
        yield f"vertices, cut by {self.strategy.chunking}", list(self._chunks())
        yield "one epoch on paper, all chunks taken for equal, transfers left out", list(self._epoch())
        yield "memory of a rank, estimated", list(self._memory())

    def _stages(self) -> Iterator[str]:
        again = f"{'again':>10}  " if self.strategy.recompute else ""
        yield f"{'stage':>5}  {'layers':>6}  {'parameters':>12}  {'forward':>10}  {'backward':>10}  {again}layers"
        for stage in range(self.strategy.stages):
            own = self.stages.of_stage(stage)
            forward, backward = sum(cost.forward_s for cost in own), sum(cost.backward_s for cost in own)
            first, last = (cost.name.split(" ")[0] for cost in (own[0], own[-1]))
            names = first if len(own) == 1 else f"{first} ... {last}"
            yield (
                f"{stage:>5}  {len(own):>6}  {sum(cost.num_parameters for cost in own):>12,}  "
                f"{milliseconds(forward):>10}  {milliseconds(backward):>10}  "
                + (f"{milliseconds(sum(cost.again_s for cost in own)):>10}  " if again else "")
                + names
            )

    def _chunks(self) -> Iterator[str]:
        cut, chunks, slots = self.stages.cut, self.stages.chunks, self.strategy.slots
        vertices = [int(number) for number in cut.sizes()]
        yield f"{'':<28}{'least':>12}  {'median':>12}  {'most':>12}  {'in all':>12}"
        for name, numbers in (("vertices of a chunk", vertices), ("edges into a chunk", chunks.edges)):
            low, mid, high = min(numbers), median(numbers), max(numbers)
            yield f"{name:<28}{low:>12,}  {mid:>12,.0f}  {high:>12,}  {sum(numbers):>12,}"
        if cut.ways > 1:
            yield ""
            yield f"{'way':>5}  {'vertices':>12}  {'edges into it':>14}  {'rows from other ways':>20}"
            of_ways = zip(_runs(vertices, slots), _runs(chunks.edges, slots), chunks.halo_forward, strict=True)
            for way, (own, edges, halo) in enumerate(of_ways):
                yield f"{way:>5}  {sum(own):>12,}  {sum(edges):>14,}  {halo:>20,}"
        yield ""
        every = max(1, sum(chunks.edges))
        crossing = {"edges between chunks": chunks.between_chunks}
        crossing |= {"edges between ways": chunks.between_ways} if cut.ways > 1 else {}
        for name, number in crossing.items():
            yield f"{name:<28}{number:>12,}  {number / every:>12.1%}"

    def _epoch(self) -> Iterator[str]:
        strategy, predicted, epoch = self.strategy, self.stages.predicted, self.stages.epoch
        alone = sum(cost.forward_s + cost.backward_s for cost in self.stages.costs) * self.stages.cut.num_chunks
        even = bubble(strategy.stages, strategy.slots)
        yield f"{'parameters':<28}{self.num_parameters:>14,}"
        yield f"{'time':<28}{milliseconds(float(predicted.makespan_s)):>14}   {milliseconds(alone)} by one process"
        yield f"{'bubble':<28}{float(predicted.bubble):>14.1%}   {even:.1%} if all stages were equal"
        sent = {"sent between stages": epoch.boundary}
        if strategy.ways > 1:
            sent |= {"sent between ways": epoch.exchange, "weights' gradients": epoch.weights}
        for name, number in sent.items():
            yield f"{name:<28}{size(number):>14}   {size(number * strategy.epochs)} in {strategy.epochs:,} epochs"
        if strategy.ways > 1:
            yield f"{'mean replicas':<28}{epoch.replicas:>14.3f}   other ways that need a vertex's row"
        yield ""
        yield _LEGEND
        yield ""
        yield from timeline(predicted, legend=False).splitlines()

    def _memory(self) -> Iterator[str]:
        heads = ("weights", "tables", "activations", "graph", "together")
        yield f"{'stage':>5}  " + "  ".join(f"{head:>11}" for head in heads)
        for stage, ranks in enumerate(_runs(self.memory, self.strategy.ways)):
            most = max(ranks, key=lambda rank: rank.total)
            yield f"{stage:>5}  " + "  ".join(f"{size(number):>11}" for number in (*most, most.total))
        largest = ", of the largest way" if self.strategy.ways > 1 else ""
        yield f"tables: rows, history and gradients of every aggregation{largest}; the graph itself, once a node: " + (
            size(self.data_bytes)
        )


def plan_graph(loaded: Loaded, prepared: Prepared) -> GraphPlan:
    """Work out what a graph pipeline would do.

    Raises:
        ConfigError: when model or graph cannot be cut as asked. PlacementError: when the cluster does not answer.
    """
    data = prepared.dataset
    assert isinstance(data, GraphData)
    stages = divide(prepared, loaded.where)
    data_bytes = sum(getattr(part, "nbytes", 0) for part in data)
    memory = tuple(rank_memory(prepared, stages))
    each = [rank.total for rank in memory]
    return GraphPlan(**common(loaded, prepared, each, data_bytes), hint=HINT, stages=stages, memory=memory)


def rank_memory(prepared: Prepared, stages: GraphStages) -> Iterator[RankMemory]:
    """Yield what each rank is expected to hold, in the order of ranks."""
    experiment, data, cut = prepared.experiment, prepared.dataset, stages.cut
    strategy = experiment.strategy
    assert isinstance(strategy, GraphPipeline) and isinstance(data, GraphData)
    each = itemsize(experiment)
    copies = 3 + optimizers.copies(strategy.optimizer.model_dump(), getattr(torch, experiment.model.dtype))
    history = strategy.slots > 1 and strategy.refresh > 1
    edges = [sum(own) for own in _runs(stages.chunks.edges, cut.slots)]
    for stage in range(strategy.stages):
        own = stages.of_stage(stage)
        widths = [width for cost in own for width, _ in cost.sites]
        for way in range(cut.ways):
            begin, end = cut.span(way)
            ahead, back = stages.chunks.halo_forward[way], stages.chunks.halo_backward[way]
            # a number and a column for every entry, of one matrix and its transpose
            graph = 2 * (edges[way] + end - begin) * (each + 4)
            graph += (end - begin + ahead) * data.num_features * each if stage == 0 else 0
            yield RankMemory(
                weights=int(copies * sum(cost.parameter_bytes for cost in own)),
                tables=memory_bytes(end - begin, ahead, back, widths, each, history),
                activations=_activations(strategy, stages, stage, (end - begin) * each, widths),
                graph=graph,
            )


def _activations(strategy: GraphPipeline, stages: GraphStages, stage: int, column: int, widths: Sequence[int]) -> int:
    """Return what a rank keeps for backward: of every chunk, or where it recomputes, aggregates and one chunk.

    Args:
        column: bytes of one number for every vertex of the way. widths: of the stage's aggregations.
    """
    of_chunk = sum(cost.activation_bytes for cost in stages.of_stage(stage))
    if not strategy.recompute:
        return of_chunk * strategy.slots
    start = sum(stages.layers[:stage])
    given = sum(stages.costs[start - 1].output_widths) if start else 0
    return of_chunk + (given + sum(widths)) * column


def _runs(values: Sequence[T], length: int) -> list[Sequence[T]]:
    """Return values in runs of a length."""
    return [values[start : start + length] for start in range(0, len(values), length)]
