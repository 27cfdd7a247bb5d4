"""How each parameter of a sharded run lies, and what a step then sends and holds: before anything starts.

What the experiment says is held against the model's parameters by name; `auto` takes, of the layouts that the planner
offers (`trainers.sharded.choosing`), the one that sends least when counted. Counted is one batch in this process, as
rank 0 of a group that moves nothing (`trainers.sharded.forecast`), which also tells what DTensor cannot do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from orchestrator.config import Origins
from orchestrator.config.memory import plain
from orchestrator.config.schema import Experiment, Sharded
from orchestrator.errors import ConfigError, Problem
from orchestrator.gang_settings import shared_by_batches
from orchestrator.memory_checks import memory_problems
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from strategies.sharded import Split, parse
from trainers import optimizers
from trainers.pipeline.chunk import LayerFailed
from trainers.sharded import choosing
from trainers.sharded.choosing import Layout
from trainers.sharded.forecast import Forecast, forecast
from trainers.sharded.layout import resolve
from trainers.sharded.settings import Settings

Placements = Mapping[str, tuple[str, ...]]
_TRIED = 3
"""Layouts that are counted where the planner is to choose, the cheapest on paper first."""


class Layouts(NamedTuple):
    """A run's layout and what it comes to.

    Args:
        settings: what ranks are told. counted: one batch of it. paper: the same layout by the formulas, and
            `alternatives` of it. copies: times its weights that a rank holds. unknown: operators without a formula.
    """

    settings: Settings
    counted: Forecast
    paper: Layout
    alternatives: tuple[Layout, ...]
    copies: float
    unknown: tuple[str, ...]

    @property
    def rank_bytes(self) -> int:
        """What one rank holds: weights, gradients, what the optimizer remembers, and activations."""
        return int(self.copies * self.counted.state_bytes) + self.counted.activation_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes of all ranks in a step, counted."""
        return self.counted.sent_bytes(self.settings.accumulate)


def divide(prepared: Prepared, where: Origins | None = None, *, compare: bool = False) -> Layouts:
    """Lay the model out, and count a batch.

    Args:
        compare: whether to work the alternatives out, too, where the layout is given.

    Raises:
        ConfigError: when a pattern, a placement, the batch or an operator does not go with the model, or nothing fits.
    """
    experiment, origins = prepared.experiment, where or Origins()
    strategy = experiment.strategy
    assert isinstance(strategy, Sharded)
    shapes = {name: tuple(p.shape) for name, p in prepared.model.named_parameters()}
    placements = resolve(strategy.patterns(), list(shapes))
    problems = list(_problems(strategy, shapes, placements, origins))
    problems += memory_problems(strategy.memory, {0: ("", prepared.model)}, origins)
    if problems:
        raise ConfigError(problems)
    split = {name: entries for name, entries in placements.items() if any(isinstance(parse(e), Split) for e in entries)}
    settings = settings_of(experiment, split, _batch_axes(strategy, split))
    if strategy.placements != "auto":
        problems = list(_batch(strategy, settings, origins))
        if problems:
            raise ConfigError(problems)
    copies = 2 + optimizers.copies(strategy.optimizer.model_dump(), getattr(torch, experiment.model.dtype))
    try:
        graph = choosing.graph_of(settings, prepared.dataset, prepared.model)
        found = _layouts(prepared, strategy, settings, graph, copies, compare)
    except LayerFailed as error:
        path = "strategy.placements"
        hint = "copy what that layer holds (B), write the operator otherwise, or strategy.kind=pipeline"
        raise ConfigError([Problem(origins(path), path, str(error), hint)]) from error
    if strategy.rank_memory is not None and found.rank_bytes > strategy.rank_memory:
        path = "strategy.rank_memory"
        message = f"got {size(strategy.rank_memory)}, but a rank holds {size(found.rank_bytes)}"
        hint = "more ranks in strategy.mesh, splits of more parameters, a smaller batch, or strategy.placements=auto"
        raise ConfigError([Problem(origins(path), path, message, hint)])
    return found


def _layouts(
    prepared: Prepared, strategy: Sharded, settings: Settings, graph: Any, copies: float, compare: bool
) -> Layouts:
    dataset, model, mesh = prepared.dataset, prepared.model, settings.mesh
    unknown = tuple(choosing.unknown(graph))
    wanted = compare or strategy.placements == "auto"
    others = choosing.candidates(graph, mesh, copies, strategy.rank_memory) if wanted else []
    others = [layout for layout in others if strategy.batch_size % _ranks(mesh, layout.batch_axes) == 0]
    if strategy.placements != "auto":
        paper = choosing.given(graph, mesh, settings.placements, settings.batch_axes, copies)
        counted = forecast(settings, dataset, model)
        return Layouts(settings, counted, paper, tuple(others), copies, unknown)
    if strategy.batch_axes is not None:
        others = [layout for layout in others if layout.batch_axes == tuple(strategy.batch_axes)] or others
    tried: list[Layouts] = []
    for layout in others[:_TRIED]:
        own = settings._replace(placements=layout.placements, batch_axes=layout.batch_axes)
        tried.append(Layouts(own, forecast(own, dataset, model), layout, tuple(others), copies, unknown))
    if not tried:
        own = settings._replace(placements={}, batch_axes=())
        counted = forecast(own, dataset, model)
        return Layouts(own, counted, choosing.given(graph, mesh, {}, (), copies), (), copies, unknown)
    return min(tried, key=lambda layouts: layouts.sent_bytes)


def settings_of(experiment: Experiment, placements: Placements, batch_axes: tuple[int, ...]) -> Settings:
    """Return what every rank is told."""
    strategy = experiment.strategy
    assert isinstance(strategy, Sharded)
    return Settings(
        **shared_by_batches(experiment),
        mesh=tuple(strategy.mesh),
        placements=placements,
        batch_axes=batch_axes,
        evaluate_batch=experiment.evaluate.batch_size,
        memory=plain(strategy.memory),
    )


def _batch_axes(strategy: Sharded, placements: Placements) -> tuple[int, ...]:
    if strategy.batch_axes is not None:
        return tuple(strategy.batch_axes)
    splits = {axis for entries in placements.values() for axis, e in enumerate(entries) if isinstance(parse(e), Split)}
    return tuple(axis for axis in range(len(strategy.mesh)) if axis not in splits)


# ------------------------------------------------------------------------------------------------------- refusals


def _problems(
    strategy: Sharded, shapes: Mapping[str, tuple[int, ...]], placements: Placements, where: Origins
) -> Iterator[Problem]:
    """Hold patterns and placements against the parameters."""
    for pattern, _ in strategy.patterns():
        path = f"strategy.placements.{pattern}"
        if not resolve([(pattern, ())], list(shapes)):
            near = difflib.get_close_matches(pattern.replace("*", ""), shapes, n=3, cutoff=0.3) or list(shapes)[:3]
            yield Problem(where(path), path, "matches no parameter of the model", f"it has {', '.join(near)}, ...")
    path = "strategy.placements"
    for name, entries in placements.items():
        pieces = [1] * len(shapes[name])
        for axis, entry in enumerate(entries):
            placement = parse(entry)
            if not isinstance(placement, Split):
                continue
            dim, parts = placement
            if dim >= len(shapes[name]):
                message = f"{name} has shape {list(shapes[name])}, so {entry} splits a dimension that it does not have"
                hint = f"S(0){f' to S({len(shapes[name]) - 1})' if len(shapes[name]) > 1 else ''}, or B"
                yield Problem(where(path), path, message, hint if shapes[name] else "B")
                break
            ranks, extent = strategy.mesh[axis], shapes[name][dim]
            if parts > 1 and extent % (parts * ranks * pieces[dim]):
                message = f"{name} has {extent} of dimension {dim}, which {parts} parts x {ranks} ranks do not divide"
                yield Problem(where(path), path, message, f"S({dim}), or a size that is a multiple of {parts * ranks}")
                break
            pieces[dim] *= ranks
            if extent < pieces[dim]:
                message = f"{name} has {extent} of dimension {dim}, fewer than the {pieces[dim]} ranks that share it"
                yield Problem(where(path), path, message, "another dimension, B, or fewer ranks in strategy.mesh")
                break


def _batch(strategy: Sharded, settings: Settings, where: Origins) -> Iterator[Problem]:
    ranks = _ranks(settings.mesh, settings.batch_axes)
    if strategy.batch_size % ranks:
        path = "strategy.batch_size"
        message = f"got {strategy.batch_size}, which the {ranks} ranks that share a batch do not divide"
        up = -(-strategy.batch_size // ranks) * ranks
        yield Problem(where(path), path, message, f"{path}={up}, or strategy.batch_axes=[]")


def _ranks(mesh: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(mesh[axis] for axis in axes)


# -------------------------------------------------------------------------------------------------------- summary


def summarise(experiment: Experiment, layouts: Layouts) -> dict[str, Any]:
    """Return how the parameters lie and what is expected of a step, ready for JSON."""
    settings, counted = layouts.settings, layouts.counted
    return {
        "kind": "sharded",
        "mesh": list(settings.mesh),
        "batch_axes": list(settings.batch_axes),
        "placements": {name: list(entries) for name, entries in counted.placements.items()},
        "collectives": collectives(layouts),
        "planned_bytes": layouts.sent_bytes,
        "formula_bytes": layouts.paper.step_bytes(settings.accumulate) if not layouts.unknown else None,
        "alternatives": [
            {"name": layout.name, "sent_bytes": layout.sent_bytes, "rank_bytes": layout.rank_bytes}
            for layout in layouts.alternatives
        ],
        "rank_bytes": layouts.rank_bytes,
    }


def collectives(layouts: Layouts) -> dict[str, dict[str, int]]:
    """Return the collectives of a step by name: how many, and the bytes of all ranks."""
    counted, times = layouts.counted, layouts.settings.accumulate
    names = sorted({*counted.counts, *counted.step_counts})
    return {
        name: {
            "count": times * counted.counts.get(name, 0) + counted.step_counts.get(name, 0),
            "bytes": times * counted.num_bytes.get(name, 0) + counted.step_bytes.get(name, 0),
        }
        for name in names
    }
