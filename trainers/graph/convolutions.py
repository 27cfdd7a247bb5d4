"""Layers of torch_geometric on a view, for users who bring their own; and a model's chain with those wrapped.

A convolution of torch_geometric fits if it takes sources and targets apart, `conv((x_source, x_target), edge_index)`:
a chunk aggregates from more vertices than it has. Those that take one `x` do not, among them the ones that
normalise by degree (GCNConv, GCN2Conv), since a chunk's edges do not tell the degrees of its sources.

Left out: edge features and weights, `target_to_source` flow, caching.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from trainers.graph.layers import GraphLayer
from trainers.graph.view import View
from trainers.models.base import ModelError
from trainers.pipeline.layers import Chain, Layer, Use, chain

_LOOPS = (("add_self_loops", True, False), ("combine_root", "self_loop", None))
"""How convolutions say that they add self-loops: attribute, value that does, value that does not."""
_OURS = {"GCNConv": "trainers.graph.layers.Gcn", "GCN2Conv": "trainers.graph.layers.Gcnii"}


class PyG(GraphLayer):
    """A torch_geometric convolution, asked with the rows that a view hands out.

    A convolution that adds self-loops itself would give row i of the targets an edge from row i of the sources, which
    in a chunk is another vertex: while it runs that is turned off, and the view adds them.

    Raises:
        ModelError: when the convolution cannot be run on a part of a graph, and what to take instead.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        _check(conv)
        self.conv = conv
        self._loops = next((loop for loop in _LOOPS if getattr(conv, loop[0], None) == loop[1]), None)

    def forward(self, x: Tensor, graph: View) -> Tensor:
        rows, edge_index = graph.sources(x, self._loops is not None)
        if self._loops is None:
            return self.conv((rows, x), edge_index)
        attribute, adds, adds_not = self._loops
        setattr(self.conv, attribute, adds_not)
        try:
            return self.conv((rows, x), edge_index)
        finally:
            setattr(self.conv, attribute, adds)


def as_layer(module: nn.Module) -> nn.Module:
    """Return a layer of a model as one that `call` can run: a bare convolution of torch_geometric is wrapped.

    Raises:
        ModelError: when it is or contains a convolution that cannot be run on a part of a graph.
    """
    if isinstance(module, GraphLayer):
        return module
    if is_convolution(module):
        return PyG(module)
    for name, part in module.named_modules():
        if is_convolution(part) or isinstance(part, GraphLayer):
            raise ModelError(
                f"{type(module).__name__} holds {type(part).__name__} as {name!r}, but is called without a graph",
                "derive it from trainers.graph.layers.GraphLayer and write forward(x, graph), or list its parts as "
                "layers of their own",
            )
    return module


def graph_chain(model: nn.Module | Sequence[nn.Module]) -> Chain:
    """Return a model as layers that `call` can run.

    Args:
        model: one with `pipeline_layers()`, a Sequential, or a list of layers.

    Raises:
        ModelError: when it is none of these, or a layer does not fit.
    """
    if not isinstance(model, nn.Module):
        model = nn.Sequential(*model)
    if not hasattr(model, "pipeline_layers") and not isinstance(model, nn.Sequential):
        raise ModelError(
            f"{type(model).__name__} is no list of layers",
            "give it pipeline_layers(), which returns its layers in order, or return a torch.nn.Sequential",
        )
    plain = chain(model)
    wrapped = [Layer(*layer._replace(module=as_layer(layer.module))) for layer in plain.layers]
    prefixes = ["conv." if new.module is not old.module else "" for new, old in zip(wrapped, plain.layers, strict=True)]
    uses = {
        name: tuple(Use(use.layer, prefixes[use.layer] + use.local) for use in where)
        for name, where in plain.uses.items()
    }
    return Chain(tuple(wrapped), uses)


def is_convolution(module: nn.Module) -> bool:
    """Return whether a module is a convolution of torch_geometric, which is not imported to know that."""
    library = sys.modules.get("torch_geometric.nn.conv.message_passing")
    return library is not None and isinstance(module, library.MessagePassing)


def _check(conv: nn.Module) -> None:
    name = type(conv).__name__
    if not is_convolution(conv):
        raise ModelError(f"{name} is no convolution of torch_geometric", "wrap torch_geometric.nn.MessagePassing only")
    parameters = list(inspect.signature(conv.forward).parameters.values())
    wanted = [
        part.name for part in parameters if part.default is part.empty and part.kind is part.POSITIONAL_OR_KEYWORD
    ]
    if not parameters or not _takes_pair(parameters[0]):
        pairs = "one that takes (x_source, x_target), such as SAGEConv, GATConv, GINConv or TransformerConv"
        raise ModelError(
            f"{name} takes all vertices at once, but a layer is run on a part of the graph",
            f"use {_OURS.get(name, pairs)}",
        )
    if len(wanted) != 2 or wanted[1] != "edge_index":
        raise ModelError(
            f"{name} wants {', '.join(wanted)}, but a view has rows and edge_index only", "use one that takes no more"
        )
    flow: Any = getattr(conv, "flow", "source_to_target")
    if flow != "source_to_target":
        raise ModelError(f"{name} has flow {flow!r}", "turn the edges round instead, and leave flow as it is")


def _takes_pair(parameter: inspect.Parameter) -> bool:
    return "Tuple" in str(parameter.annotation) or "Pair" in str(parameter.annotation)
