"""Graph attention: neighbours are summed with weights that depend on features, so a view hands out rows, not sums.

Left out: edge features, attention of Brody et al. (GATv2), which `convolutions.py` takes from torch_geometric.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.dropout import Dropout
from trainers.graph.layers import GraphLayer, glorot
from trainers.graph.view import View


class Gat(GraphLayer):
    """`sum over u in N(v) and v of a(u, v) x_u W + b`, with `a` a softmax over u of `leaky_relu(s_u + t_v)`, per head.

    Rows are multiplied by W where they live, before the view is asked for them: `heads * out_width` numbers a vertex.

    Args:
        out_width: of one head.
        concat: heads side by side, `[n, heads * out_width]`; else their mean, `[n, out_width]`.
        dropout: of the attention weights.

    Source: Velickovic et al. 2018, arXiv:1710.10903, eqs. 3 to 6; `s` and `t` are the halves of the paper's vector a,
    as in torch_geometric's GATConv. Its edges are kept in memory with a row each: for large graphs take Gcn or Sage.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.concat, self.negative_slope = heads, concat, negative_slope
        self.weight = glorot(heads * out_width, in_width)
        self.source = glorot(heads, out_width)
        self.target = glorot(heads, out_width)
        self.bias = nn.Parameter(torch.zeros(heads * out_width if concat else out_width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, graph: View) -> Tensor:
        own = functional.linear(x, self.weight)
        rows, (source, target) = graph.sources(own, self_loops=True)
        own, rows = (part.view(len(part), *self.source.shape) for part in (own, rows))
        scores = (rows * self.source).sum(-1).index_select(0, source)
        scores = scores + (own * self.target).sum(-1).index_select(0, target)
        weights = edge_softmax(functional.leaky_relu(scores, self.negative_slope), target, len(x))
        messages = self.dropout(weights)[:, :, None] * rows.index_select(0, source)
        result = torch.zeros_like(own).index_add(0, target, messages)
        return (result.flatten(1) if self.concat else result.mean(1)) + self.bias

    def extra_repr(self) -> str:
        out_width, in_width = self.weight.shape
        return f"{in_width}, {out_width // self.heads}, heads={self.heads}, concat={self.concat}"


def edge_softmax(scores: Tensor, target: Tensor, num_targets: int) -> Tensor:
    """Return weights that are positive and sum to one over the edges of each target.

    Args:
        target: of each edge, ascending, as `View.sources` orders them.

    Shapes: `scores [num_edges, heads]`, `target [num_edges]`, result as `scores`.
    """
    counts = torch.bincount(target, minlength=num_targets)
    largest = torch.segment_reduce(scores.detach(), "max", lengths=counts, axis=0)
    weights = (scores - largest.index_select(0, target)).exp()
    totals = weights.new_zeros(num_targets, *weights.shape[1:]).index_add(0, target, weights)
    return weights / totals.index_select(0, target)
