"""Which layers each stage of a pipeline gets, and what a step is then expected to take and to hold.

The layers are measured on this machine, once forward and backward (`trainers.pipeline.costs`), cut so that the
largest stage is as small as it can be (`strategies.pipeline.balance`), and the schedule is run on paper with their
times (`strategies.pipeline.simulate`). Left out of the prediction: transfers, the optimizer, and cores that stages
share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from orchestrator.config import Origins
from orchestrator.config.memory import plain
from orchestrator.config.schema import Experiment, Pipeline
from orchestrator.errors import ConfigError, Problem
from orchestrator.gang_settings import shared_by_batches
from orchestrator.memory_checks import insist_parts
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from strategies.optimizers.shares import largest
from strategies.pipeline import Costs, Placement, Simulation, balance, placement, schedule, simulate, splits_backward
from trainers import optimizers
from trainers.models import ModelError
from trainers.pipeline.chunk import LayerFailed
from trainers.pipeline.costs import LayerCost, measure
from trainers.pipeline.layers import Chain, chain
from trainers.pipeline.settings import Settings
from trainers.pipeline.transport import NUM_MICROBATCHES, NUM_POSITIONS

_MODES = ("never", "except-last", "always")


class Stages(NamedTuple):
    """A model cut into stages.

    Args:
        layers: of each position of the model, how many; a stage has several positions under some schedules.
        placement: which positions each stage has.
        costs: of each layer, for one micro-batch. recompute: of each stage.
        fixed_bytes: of each stage, weights, gradients and what the optimizer remembers; of the replica that has most,
            where these share that out.
        predicted: one batch on paper; its `peak_bytes` are activations.
    """

    layers: tuple[int, ...]
    placement: Placement
    costs: tuple[LayerCost, ...]
    recompute: tuple[str, ...]
    fixed_bytes: tuple[int, ...]
    predicted: Simulation

    def of_position(self, position: int) -> Sequence[LayerCost]:
        return _of_position(self.layers, self.costs, position)

    def of_stage(self, stage: int) -> list[LayerCost]:
        """Return the layers of a stage, over all its positions."""
        return _of_stage(self.layers, self.placement, self.costs, stage)

    def stage_bytes(self, stage: int) -> int:
        """Return what a stage is expected to hold."""
        return int(self.fixed_bytes[stage] + self.predicted.peak_bytes[stage])


def divide(prepared: Prepared, where: Origins | None = None) -> Stages:
    """Measure the layers, cut the model, and choose what each stage recomputes.

    Raises:
        ConfigError: when the model is no chain, has too few layers, or does not fit `strategy.stage_memory`, or when
            there are more micro-batches than messages can be told apart.
    """
    experiment, origins = prepared.experiment, where or Origins()
    strategy = experiment.strategy
    assert isinstance(strategy, Pipeline)
    if problems := [
        Problem(origins(path), path, f"got {told}, expected at most {most:,}, which messages can tell apart", hint)
        for path, told, most, hint in _too_many(prepared)
    ]:
        raise ConfigError(problems)
    try:
        costs = measure(
            prepared.model,
            prepared.dataset,
            size=microbatch_size(strategy),
            dtype=getattr(torch, experiment.model.dtype),
            loss=strategy.loss.model_dump(),
            precision=strategy.precision,
            memory=plain(strategy.memory),
            threads=experiment.cluster.threads_per_worker,
        )
    except ModelError as error:
        raise ConfigError([Problem(origins("model"), "model", error.message, error.hint)]) from error
    except LayerFailed as error:
        path = "strategy.loss" if str(error).startswith("the loss") else "model"
        raise ConfigError([Problem(origins(path), path, str(error), "tried on one micro-batch")]) from error
    whole = chain(prepared.model)
    named = {layer.index: (layer.name, layer.module) for layer in whole.layers}
    insist_parts(strategy.memory, named, origins)
    remembered, sharing = _optimizer_copies(experiment), strategy.replicas if strategy.shard_optimizer else 1
    try:
        layers = _cut(strategy, costs, 2 + remembered / sharing)
    except ValueError as error:
        listed = not isinstance(strategy.partition, str)
        path = "strategy.partition" if listed else "strategy.stage_memory"
        hint = f"numbers that add up to {len(costs)}, or time" if listed else "more stages, or more memory for each"
        raise ConfigError([Problem(origins(path), path, str(error), hint)]) from error
    placed = placement(strategy.schedule, strategy.stages, len(layers) // strategy.stages)
    parameters = [sum(c.parameter_bytes for c in _of_stage(layers, placed, costs, s)) for s in range(strategy.stages)]
    shares = [_largest_share(whole, layers, placed, stage, sharing) for stage in range(strategy.stages)]
    fixed = tuple(int((2 + remembered * share) * own) for share, own in zip(shares, parameters, strict=True))
    return _recomputing(strategy, layers, placed, costs, fixed, origins)


def microbatch_size(strategy: Pipeline) -> int:
    """Return the number of examples of a batch's largest micro-batch."""
    share = -(-strategy.batch_size // strategy.replicas)
    return -(-share // min(strategy.microbatches, share))


def num_microbatches(strategy: Pipeline) -> int:
    """Return into how many micro-batches a replica's share of a batch is cut."""
    return min(strategy.microbatches, -(-strategy.batch_size // strategy.replicas))


def settings_of(experiment: Experiment, stages: Stages) -> Settings:
    """Return what every rank is told."""
    strategy = experiment.strategy
    assert isinstance(strategy, Pipeline)
    return Settings(
        **shared_by_batches(experiment),
        stages=strategy.stages,
        replicas=strategy.replicas,
        schedule=strategy.schedule,
        microbatches=strategy.microbatches,
        layers=stages.layers,
        recompute=stages.recompute,
        shard_optimizer=strategy.shard_optimizer,
        memory=plain(strategy.memory),
    )


def summarise_stages(experiment: Experiment, stages: Stages) -> dict[str, Any]:
    """Return the cut and the prediction, ready for JSON."""
    strategy = experiment.strategy
    assert isinstance(strategy, Pipeline)
    rows = []
    for stage in range(strategy.stages):
        own = stages.of_stage(stage)
        rows.append(
            {
                "layers": [cost.name for cost in own],
                "forward_s": sum(cost.forward_s for cost in own),
                "backward_s": sum(cost.backward_s for cost in own),
                "num_parameters": sum(cost.num_parameters for cost in own),
                "fixed_bytes": stages.fixed_bytes[stage],
                "activation_bytes": int(stages.predicted.peak_bytes[stage]),
                "recompute": stages.recompute[stage],
                "peak_live": stages.predicted.peak_live[stage],
            }
        )
    return {
        "kind": "stages",
        "schedule": strategy.schedule,
        "layers": list(stages.layers),
        "num_microbatches": num_microbatches(strategy),
        "stages": rows,
        "predicted_s": float(stages.predicted.makespan_s),
        "predicted_bubble": float(stages.predicted.bubble),
        "predicted": [_spans(stages.predicted, stage) for stage in range(strategy.stages)],
    }


# ---------------------------------------------------------------------------------------------------- the parts


def _too_many(prepared: Prepared) -> Iterator[tuple[str, str, int, str]]:
    """Yield what there is too much of for a transport to number: the field, how many, the most, what to type."""
    strategy = prepared.experiment.strategy
    assert isinstance(strategy, Pipeline)
    if strategy.num_positions > NUM_POSITIONS:
        yield "strategy.stages", f"{strategy.num_positions:,} parts of a model", NUM_POSITIONS, "fewer stages or chunks"
    if (count := num_microbatches(strategy)) > NUM_MICROBATCHES:
        hint = f"strategy.microbatches={NUM_MICROBATCHES}, and strategy.accumulate for larger batches"
        yield "strategy.microbatches", f"{count:,} micro-batches", NUM_MICROBATCHES, hint
    rows, asked = -(-len(prepared.dataset.test_y) // strategy.replicas), prepared.experiment.evaluate.batch_size
    if (count := -(-rows // asked)) > NUM_MICROBATCHES:
        told = f"{asked}, which cuts the test examples into {count:,} micro-batches"
        yield "evaluate.batch_size", told, NUM_MICROBATCHES, f"evaluate.batch_size={-(-rows // NUM_MICROBATCHES)}"


def _spans(predicted: Simulation, stage: int) -> list[list[Any]]:
    """Return a stage's spans on paper as those that ranks report: kind, chunk, micro-batch, begin, ready, end."""
    done = [(span, span.action.kind) for span in predicted.spans[stage]]
    again = [(span, "R") for span in predicted.recomputed[stage]]
    rows = [
        [kind, span.action.chunk, span.action.microbatch, float(span.start_s), float(span.start_s), float(span.end_s)]
        for span, kind in (*done, *again)
    ]
    return sorted(rows, key=lambda row: row[3])


def _of_position(layers: Sequence[int], costs: Sequence[LayerCost], position: int) -> Sequence[LayerCost]:
    start = sum(layers[:position])
    return costs[start : start + layers[position]]


def _of_stage(layers: Sequence[int], placed: Placement, costs: Sequence[LayerCost], stage: int) -> list[LayerCost]:
    return [cost for position in placed.positions(stage) for cost in _of_position(layers, costs, position)]


def _cut(strategy: Pipeline, costs: Sequence[LayerCost], copies: float) -> tuple[int, ...]:
    num_positions = strategy.num_positions
    if not isinstance(strategy.partition, str):
        if sum(strategy.partition) != len(costs):
            raise ValueError(f"{strategy.partition} are {sum(strategy.partition)} layers, the model has {len(costs)}")
        return tuple(strategy.partition)
    by_time = strategy.partition == "time"
    weights = [c.forward_s + c.backward_s if by_time else float(c.num_parameters) for c in costs]
    if strategy.stage_memory is None:
        return tuple(balance(weights, num_positions))
    held = [copies * cost.parameter_bytes for cost in costs]
    limit = strategy.stage_memory * strategy.stages / num_positions
    return tuple(balance(weights, num_positions, memory=held, limit=limit))


def _recomputing(
    strategy: Pipeline,
    layers: tuple[int, ...],
    placed: Placement,
    costs: Sequence[LayerCost],
    fixed: tuple[int, ...],
    origins: Origins,
) -> Stages:
    """Return the stages, each of which recomputes as little as the memory allows, where that is left open."""
    modes = _MODES if strategy.recompute == "fit" else (strategy.recompute,)
    chosen = [modes[0]] * strategy.stages
    while True:
        predicted = _predict(strategy, layers, placed, costs, chosen)
        stages = Stages(layers, placed, tuple(costs), tuple(chosen), fixed, predicted)
        over = list(_over(strategy, stages))
        if not over:
            return stages
        more = [stage for stage in over if chosen[stage] != modes[-1]]
        if not more:
            need = ", ".join(f"stage {s} {size(stages.stage_bytes(s))}" for s in over)
            path = "strategy.stage_memory"
            message = f"got {size(strategy.stage_memory or 0)}, but expected to need: {need}"
            hint = "more stages, more micro-batches" + ("" if strategy.recompute == "fit" else ", or recompute: fit")
            raise ConfigError([Problem(origins(path), path, message, hint)])
        for stage in more:
            chosen[stage] = modes[modes.index(chosen[stage]) + 1]


def _predict(
    strategy: Pipeline,
    layers: Sequence[int],
    placed: Placement,
    costs: Sequence[LayerCost],
    recompute: Sequence[str],
) -> Simulation:
    own = [_of_position(layers, costs, position) for position in range(len(layers))]
    modes = [recompute[placed.stage(position)] for position in range(len(layers))]
    count = num_microbatches(strategy)
    split = splits_backward(strategy.schedule)
    backward = [sum(c.backward_s for c in cs) for cs in own]
    return simulate(
        schedule(strategy.schedule, strategy.stages, count, placed.num_chunks),
        Costs(
            forward_s=[sum(c.forward_s for c in cs) for cs in own],
            # The two products of a linear layer's backward take as long as each other.
            backward_s=[seconds / 2 for seconds in backward] if split else backward,
            weight_s=[seconds / 2 for seconds in backward] if split else (),
            recompute_s=[
                0.0 if mode == "never" else sum(c.forward_s for c in cs) for cs, mode in zip(own, modes, strict=True)
            ],
            not_recomputed=() if "always" in modes else (count - 1,),
            activation_bytes=[
                sum(c.activation_bytes for c in cs) - cs[0].own_input_bytes + cs[0].held_input_bytes for cs in own
            ],
            boundary_bytes=[cs[0].boundary_bytes for cs in own],
            gradient_bytes=[sum(c.gradient_bytes for c in cs) for cs in own] if split else (),
        ),
    )


def _over(strategy: Pipeline, stages: Stages) -> Iterator[int]:
    if strategy.stage_memory is not None:
        yield from (s for s in range(strategy.stages) if stages.stage_bytes(s) > strategy.stage_memory)


def _largest_share(whole: Chain, layers: Sequence[int], placed: Placement, stage: int, num: int) -> float:
    """Return which part of a stage's parameters the replica moves that moves most, of `num` that share them out."""
    starts = [sum(layers[:position]) for position in range(len(layers))]
    own = {i for p in placed.positions(stage) for i in range(starts[p], starts[p] + layers[p])}
    sizes: dict[str, int] = {}
    for name, uses in whole.uses.items():
        tensor = whole.tensor(uses[0])
        num_here = sum(use.layer in own for use in uses)
        if num_here and isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            sizes[name] = num_here * tensor.numel()
    return largest(sizes, num) / max(1, sum(sizes.values()))


def _optimizer_copies(experiment: Experiment) -> float:
    """Return how many times the weights' bytes the optimizer remembers."""
    return optimizers.copies(experiment.strategy.optimizer.model_dump(), getattr(torch, experiment.model.dtype))
