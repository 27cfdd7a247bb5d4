"""Graph layers that ask a `View` for their neighbours: GCN, GraphSAGE, GCNII and the residual block of ResGCN+.

A `GraphLayer` is called with the view as its last argument, every other module without; `call` tells them apart. What
is local to a vertex (dropout, ReLU, normalisation, affine maps) happens in the same layer as the aggregation, so that
a pipeline may cut between any two layers of a model.

A layer has to aggregate once, and an affine map in it commutes with that: the narrower rows are aggregated, which
costs less and is less to exchange. Where both sides are as wide, aggregation comes first: its backward pass is then
not needed where the input needs no gradient, and approximate rows of other chunks never go straight into a ReLU.
Both orders agree to rounding.

Weights start as Glorot and Bengio draw them, biases at zero. Left out: weighted edges, edge features; attention is in
`attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.dropout import Dropout
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

    Source: Kipf and Welling 2017, arXiv:1609.02907, eq. 2; torch_geometric's GCNConv, which always multiplies first.
    """

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = glorot(out_width, in_width)
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    def forward(self, x: Tensor, graph: View) -> Tensor:
        if _narrows(self.weight):
            mixed = graph.propagate(functional.linear(x, self.weight), "gcn")
            return mixed if self.bias is None else mixed + self.bias
        return functional.linear(graph.propagate(x, "gcn"), self.weight, self.bias)

    def extra_repr(self) -> str:
        return _widths(self.weight)


class Sage(GraphLayer):
    """`mean(x of the in-neighbours) W + x R + b`; a vertex without in-neighbours has `x R + b`.

    Source: Hamilton, Ying, Leskovec 2017, arXiv:1706.02216, algorithm 1 with the mean aggregator, whose concatenation
    and one matrix are the two matrices here; over all neighbours instead of a sample, and without line 7's division of
    rows by their norm, as torch_geometric's SAGEConv by default, whose `lin_l` is W and b, and `lin_r` R.
    """

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = glorot(out_width, in_width)
        self.root = glorot(out_width, in_width)
        self.bias = nn.Parameter(torch.zeros(out_width)) if bias else None

    def forward(self, x: Tensor, graph: View) -> Tensor:
        if _narrows(self.weight):
            mixed = graph.propagate(functional.linear(x, self.weight), "mean")
        else:
            mixed = functional.linear(graph.propagate(x, "mean"), self.weight)
        return mixed + functional.linear(x, self.root, self.bias)

    def extra_repr(self) -> str:
        return _widths(self.weight)


class Gcnii(GraphLayer):
    """`relu(((1 - alpha) P x + alpha initial) ((1 - beta) I + beta W))` with `beta = log(theta / depth + 1)`.

    It takes and returns `(x, initial)`, the second as it came, since later layers need it too.

    Args:
        depth: which layer of the model this is, counted from 1: deeper ones are nearer to the identity.
        alpha, theta: the paper's alpha and lambda.
        dropout: of x, before anything else.

    Source: Chen, Wei, Huang, Ding, Li 2020, arXiv:2007.02133, eq. 5 and the beta below it; dropout where the authors'
    code has it. torch_geometric's GCN2Conv is this without dropout and ReLU, and with W transposed.
    """

    def __init__(self, width: int, depth: int, *, alpha: float = 0.1, theta: float = 0.5, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.weight = glorot(width, width)
        self.alpha = alpha
        self.beta = math.log(theta / depth + 1)

    def forward(self, x: Tensor, initial: Tensor, graph: View) -> tuple[Tensor, Tensor]:
        mixed = torch.lerp(graph.propagate(self.dropout(x), "gcn"), initial, self.alpha)
        return functional.relu(torch.lerp(mixed, functional.linear(mixed, self.weight), self.beta)), initial

    def extra_repr(self) -> str:
        return f"{_widths(self.weight)}, alpha={self.alpha}, beta={self.beta:.4g}"


class ResGcnPlus(GraphLayer):
    """`x + sage(dropout(relu(norm(x))))`.

    Source: the order of Li, Xiong, Thabet, Ghanem 2020, arXiv:2006.07739, section 4.2 ("res+"), with the layer norm,
    which has no weights, and the mean aggregation of GNNPipe's published code. The paper itself has batch or layer
    normalisation with weights and aggregates by a softmax or power mean of learned temperature.
    """

    def __init__(self, width: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.dropout = Dropout(dropout)
        self.conv = Sage(width, width)

    def forward(self, x: Tensor, graph: View) -> Tensor:
        return x + self.conv(self.dropout(functional.relu(self.norm(x))), graph)


class Activated(GraphLayer):
    """Dropout, a graph layer, then an activation: a layer of GCN, GraphSAGE or GAT as their models stack them.

    Args:
        activation: a module; None for the last layer.
    """

    def __init__(self, conv: GraphLayer, *, dropout: float = 0.0, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.conv = conv
        self.activation = activation

    def forward(self, x: Tensor, graph: View) -> Tensor:
        x = self.conv(self.dropout(x), graph)
        return x if self.activation is None else self.activation(x)


def glorot(out_width: int, in_width: int) -> nn.Parameter:
    """Return weights drawn uniformly within `sqrt(6 / (in + out))`.

    Source: Glorot and Bengio 2010, AISTATS, eq. 16.
    """
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(out_width, in_width)))


def _narrows(weight: Tensor) -> bool:
    return weight.shape[0] < weight.shape[1]


def _widths(weight: Tensor) -> str:
    return f"{weight.shape[1]}, {weight.shape[0]}"
