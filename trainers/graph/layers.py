"""Graph layers that ask a `View` for their neighbours: GCN, GraphSAGE, GCNII, the residual block of ResGCN+, GAT.

A `GraphLayer` is called with the view as its last argument, every other module without; `call` tells them apart. What
is local to a vertex (dropout, ReLU, normalisation, affine maps) happens in the same layer as the aggregation, so that
a pipeline may cut between any two layers of a model.

Weights start as Glorot and Bengio draw them, biases at zero. Left out: weighted edges, and edge features.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.graph.view import View

Carry = Tensor | tuple[Tensor, ...]
"""What layers hand on: one tensor or several, each with a row for every own vertex."""


class GraphLayer(nn.Module):
    """A layer that takes a view after its tensors: `forward(x, graph)`, or `forward(x, initial, graph)` and so on.

    It takes what the layer before returned, one tensor or a tuple of them, `[n, ...]` each, and returns the like.
    """


def call(layer: nn.Module, carry: Carry, graph: View) -> Carry:
    """Run one layer on what the layer before returned."""
    inputs = carry if isinstance(carry, tuple) else (carry,)
    return layer(*inputs, graph) if isinstance(layer, GraphLayer) else layer(*inputs)


def run(layers: Iterable[nn.Module], carry: Carry, graph: View) -> Carry:
    """Run layers one after another."""
    for layer in layers:
        carry = call(layer, carry, graph)
    return carry


class Gcn(GraphLayer):
    """`P x W + b`, P being the symmetrically normalised adjacency with self-loops.

    Of `P (x W)` and `(P x) W` the one is computed that aggregates the narrower rows, and `(P x) W` where both are as
    wide, since its backward pass needs no aggregation where `x` needs no gradient. They differ by rounding.

    Source: Kipf and Welling 2017, arXiv:1609.02907, eq. 2; torch_geometric's GCNConv, which always multiplies first.
    """

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = glorot(out_width, in_width)
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    def forward(self, x: Tensor, graph: View) -> Tensor:
        out_width, in_width = self.weight.shape
        if in_width <= out_width:
            return functional.linear(graph.propagate(x, "gcn"), self.weight, self.bias)
        mixed = graph.propagate(functional.linear(x, self.weight), "gcn")
        return mixed if self.bias is None else mixed + self.bias


def glorot(out_width: int, in_width: int) -> nn.Parameter:
    """Return weights drawn uniformly within `sqrt(6 / (in + out))`.

    Source: Glorot and Bengio 2010, AISTATS, eq. 16.
    """
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(out_width, in_width)))


class Activated(GraphLayer):
    """Dropout, a graph layer, then an activation: a layer of GCN, GraphSAGE or GAT as their models stack them.

    Args:
        activation: a module; None for the last layer.
    """

    def __init__(self, conv: GraphLayer, *, dropout: float = 0.0, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.conv = conv
        self.activation = activation

    def forward(self, x: Tensor, graph: View) -> Tensor:
        x = self.conv(self.dropout(x), graph)
        return x if self.activation is None else self.activation(x)
