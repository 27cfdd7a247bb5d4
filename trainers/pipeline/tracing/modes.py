"""The graph of what a model's forward does, right in training and in evaluation.

A plain fx trace takes whether the model trains for a constant. Here both modes are traced, and a constant in which they
differ, such as the `training` of functional.dropout, becomes a choice on the graph module's own `training`. A model
that does other things in one mode than in the other is refused.
"""

from __future__ import annotations

import inspect
import operator
from itertools import zip_longest
from typing import Any

import torch
from torch import fx, nn

from trainers.models.base import ModelError
from trainers.pipeline.tracing.tracer import HINT, Traced, record, where


def trace(model: nn.Module) -> Traced:
    """Return the graph of a model with one input, which reads `training` where the two modes differ in a constant.

    Raises:
        ModelError: when fx cannot trace it, naming the module and the line.
    """
    try:
        inspect.signature(type(model).forward).bind(model, None)
    except TypeError as error:
        raise ModelError(f"forward of {type(model).__name__} cannot be called with one tensor: {error}", HINT) from None
    training, evaluating = record(model, True), record(model, False)
    _join(model, training, evaluating)
    return training


class _Differs(Exception):
    """Two nodes are not the same operation on the same values."""


def _join(model: nn.Module, training: Traced, evaluating: Traced) -> None:
    """Make the training graph right in evaluation too.

    Raises:
        ModelError: when the two do different things, naming the first.
    """
    graph, twins = training.graph, {}
    for mine, other in zip_longest(list(graph.nodes), evaluating.graph.nodes):
        try:
            if mine is None or other is None or (mine.op, mine.target) != (other.op, other.target):
                raise _Differs
            if mine.target in training.constants and mine.op == "get_attr":
                made = training.constants[mine.target], evaluating.constants[mine.target]
                if made[0].dtype != made[1].dtype or not torch.equal(*made):
                    raise _Differs
            with graph.inserting_before(mine):
                mine.args = _either(graph, mine.args, other.args, twins)
                mine.kwargs = _either(graph, mine.kwargs, other.kwargs, twins)
        except _Differs:
            name, place = type(model).__name__, where(other if mine is None or mine.op == "output" else mine)
            raise ModelError(
                f"{name} is no chain of layers, and cannot be traced: {place}: training and evaluation do other things",
                f"let modules such as nn.Dropout ask for the mode, or {HINT}",
            ) from None
        twins[mine] = other


def _either(graph: fx.Graph, mine: Any, other: Any, twins: dict[fx.Node, fx.Node]) -> Any:
    """Return an argument, with a choice by `training` wherever the two modes have different constants."""
    if isinstance(mine, fx.Node) or isinstance(other, fx.Node):
        if twins.get(mine) is not other:
            raise _Differs
        return mine
    if isinstance(mine, tuple | list | dict | slice) and type(mine) is not type(other):
        raise _Differs
    if isinstance(mine, slice):
        ends = zip((mine.start, mine.stop, mine.step), (other.start, other.stop, other.step), strict=True)
        return slice(*(_either(graph, a, b, twins) for a, b in ends))
    if isinstance(mine, tuple | list):
        if len(mine) != len(other):
            raise _Differs
        parts = [_either(graph, a, b, twins) for a, b in zip(mine, other, strict=True)]
        return tuple(parts) if isinstance(mine, tuple) else parts
    if isinstance(mine, dict):
        if mine.keys() != other.keys():
            raise _Differs
        return {key: _either(graph, mine[key], other[key], twins) for key in mine}
    if type(mine) is type(other) and mine == other:
        return mine
    mode = graph.create_node("get_attr", "training")
    return graph.create_node("call_function", operator.getitem, ((other, mine), mode))
