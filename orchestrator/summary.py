"""One line on what an experiment trains, on what and how, once it has been prepared; for `validate`."""

from __future__ import annotations

from orchestrator.config import Origins
from orchestrator.config.schema import GraphPipeline, LocalLearning, Pipeline, Sharded, Zero
from orchestrator.preparing import Prepared
from trainers.data.graphs.base import GraphData


def summary(prepared: Prepared, where: Origins | None = None) -> str:
    """Return the line. A gang's model and data are cut for it, so that what cannot be cut is told here.

    Raises:
        ConfigError: when a model, or a graph, cannot be cut as the experiment says.
    """
    experiment, data = prepared.experiment, prepared.dataset
    strategy = experiment.strategy
    if isinstance(strategy, GraphPipeline):
        from orchestrator import graph_stages

        graph_stages.divide(prepared, where)
        assert isinstance(data, GraphData)
        how = f"of {_many(strategy.stages, 'stage')} x {_many(strategy.ways, 'way')}, {_many(strategy.slots, 'chunk')}"
        how += " each" if strategy.ways > 1 else ""
        of_data = f"{data.name} with {data.num_vertices:,} vertices and {data.num_edges:,} edges"
    elif isinstance(strategy, Pipeline):
        from orchestrator import stages

        stages.divide(prepared, where)
        how = f"of {_many(strategy.stages, 'stage')}"
        how += f" x {_many(strategy.replicas, 'replica')}" if strategy.replicas > 1 else ""
        how += f", {strategy.schedule} with {_many(stages.num_microbatches(strategy), 'micro-batch', 'es')}"
        of_data = f"{data.name} with {len(data.train_y):,} examples"
    elif isinstance(strategy, LocalLearning):
        from orchestrator import local_stages

        local_stages.divide(prepared, where)
        how = f"{strategy.rule.name} of {_many(strategy.modules, 'module')}, {strategy.regime}"
        of_data = f"{data.name} with {len(data.train_y):,} examples"
    elif isinstance(strategy, Zero):
        from orchestrator.zero_sizes import settle_zero

        settled = settle_zero(prepared, where)[0].experiment.strategy
        how = f"stage {settled.stage} of {_many(strategy.ranks, 'rank')}"
        how += f", offload to {strategy.offload}" if strategy.offload != "none" else ""
        of_data = f"{data.name} with {len(data.train_y):,} examples"
    elif isinstance(strategy, Sharded):
        from orchestrator import sharded_layouts

        found = sharded_layouts.divide(prepared, where).settings
        how = f"over {' x '.join(map(str, found.mesh))} {_many(found.num_ranks, 'rank').split()[-1]}, "
        how += f"{_many(len(found.placements), 'parameter')} split"
        of_data = f"{data.name} with {len(data.train_y):,} examples"
    else:
        assert prepared.partition is not None
        how = strategy.algorithm.name
        who = "peers" if strategy.kind == "peers" else "clients"
        of_data = f"{data.name} for {prepared.partition.num_clients} {who}"
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    return f"{experiment.name}: {strategy.kind} {how}, {of_data}, {parameters:,} parameters"


def _many(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}" + (plural if number != 1 else "")
