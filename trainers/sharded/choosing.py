"""Layouts to choose from, each priced on paper: data parallel, what OneFlow's greedy rule takes, and the cheapest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import nn

from strategies.sharded import (
    BROADCAST,
    Assignment,
    Graph,
    MeshAssignment,
    Operator,
    Placement,
    Split,
    TooLarge,
    exact,
    greedy,
    parse,
    plan_mesh,
    show,
)
from trainers.activations import Policy
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.pipeline import losses
from trainers.sharded.settings import Settings
from trainers.sharded.tracing import trace

Placements = Mapping[str, tuple[str, ...]]


class Layout(NamedTuple):
    """One way to lay out the model.

    Args:
        name: data parallel, greedy, exact or given. placements: of parameters that are split somewhere.
        batch_axes: axes that a batch is split over. sent_bytes: by the formulas, in a step of one batch.
        sum_bytes: of those, sums of gradients, made once a step. rank_bytes: held by one rank, by the formulas.
    """

    name: str
    placements: Placements
    batch_axes: tuple[int, ...]
    sent_bytes: float
    sum_bytes: float
    rank_bytes: float

    def step_bytes(self, accumulate: int) -> float:
        """Return what a step of so many batches sends."""
        return accumulate * (self.sent_bytes - self.sum_bytes) + self.sum_bytes


def graph_of(settings: Settings, dataset: Dataset, model: nn.Module) -> Graph:
    """Return the graph of one batch of the run."""
    rows = settings.batches(len(dataset.train_y), 1)[0]
    x = to_tensor(dataset.train_x[rows], dataset, getattr(torch, settings.model["dtype"]))
    graph = trace(model, x, to_labels(dataset.train_y[rows]), losses.build(settings.loss))
    return graph if settings.memory is None else _in_8_bits(graph, Policy.of(settings.memory))


def _in_8_bits(graph: Graph, policy: Policy) -> Graph:
    """Return the graph with what layers keep for backward in 8 bits, where they do; the loss keeps all."""

    def kept(op: Operator) -> int | None:
        return 1 if op.where and math.prod(op.shape) >= policy.min_elements and policy.encodes(op.where) else None

    return graph._replace(operators=tuple(op._replace(kept=kept(op)) for op in graph.operators))


def unknown(graph: Graph) -> list[str]:
    """Return operators that the planner does not know, with a layer that calls each."""
    from strategies.sharded import KINDS

    found = {op.kind: op.where for op in graph.operators if op.kind not in KINDS}
    return [f"{kind} in {where or 'the model'}" for kind, where in sorted(found.items())]


def given(
    graph: Graph, mesh: Sequence[int], placements: Placements, batch_axes: Sequence[int], copies: float
) -> Layout:
    """Price a layout that is given."""

    def solve(left: Graph, axis: int) -> Assignment:
        fixed: dict[str, Placement] = dict.fromkeys(graph.parameters, BROADCAST)
        fixed |= {name: parse(entries[axis]) for name, entries in placements.items()}
        fixed |= dict.fromkeys(graph.data, Split(0) if axis in batch_axes else BROADCAST)
        return greedy(left, mesh[axis], copies=copies, fixed=fixed, whole=True)

    return _layout("given", plan_mesh(graph, mesh, solve, copies=copies), graph)


def data_parallel(graph: Graph, mesh: Sequence[int], copies: float) -> Layout:
    """Price the layout in which every axis has a share of the batch, and all of the model."""
    return given(graph, mesh, {}, range(len(mesh)), copies)._replace(name="data parallel")


def candidates(graph: Graph, mesh: Sequence[int], copies: float, memory: float | None) -> list[Layout]:
    """Return what may be chosen, the cheapest on paper first; nothing where nothing fits into a rank's memory."""
    found = [data_parallel(graph, mesh, copies)]
    batch = dict.fromkeys(graph.data, Split(0))
    first = plan_mesh(
        graph, mesh, lambda left, axis: greedy(left, mesh[axis], copies=copies, fixed=batch), copies=copies
    )
    found.append(_layout("greedy", first, graph))
    for shared in itertools.product((False, True), repeat=len(mesh)):
        if not all(shared):
            with suppress(TooLarge):
                found.append(_exact(graph, mesh, copies, memory, shared))
    fitting = [layout for layout in found if memory is None or layout.rank_bytes <= memory]
    different = {(str(layout.placements), layout.batch_axes): layout for layout in reversed(fitting)}
    return sorted(different.values(), key=lambda layout: layout.sent_bytes)


def _exact(graph: Graph, mesh: Sequence[int], copies: float, memory: float | None, shared: Sequence[bool]) -> Layout:
    """Return the cheapest layout in which some axes share the batch and nothing else, and the others are planned."""
    weights: dict[str, Placement] = dict.fromkeys(graph.parameters, BROADCAST)
    weights |= dict.fromkeys(graph.data, Split(0))

    def solve(left: Graph, axis: int) -> Assignment:
        if shared[axis]:
            return greedy(left, mesh[axis], copies=copies, fixed=weights, whole=True)
        bound = memory if axis == max(place for place, known in enumerate(shared) if not known) else None
        return exact(left, mesh[axis], copies=copies, memory=bound)

    return _layout("exact", plan_mesh(graph, mesh, solve, copies=copies), graph)


def _layout(name: str, found: MeshAssignment, graph: Graph) -> Layout:
    placements = {
        parameter: tuple(map(show, entries))
        for parameter, entries in found.placements.items()
        if parameter in graph.parameters and any(entry != BROADCAST for entry in entries)
    }
    entries = found.placements.get("input", ())
    axes = tuple(axis for axis, entry in enumerate(entries) if entry == Split(0))
    return Layout(name, placements, axes, found.sent_bytes, found.sum_bytes, found.rank_bytes)
