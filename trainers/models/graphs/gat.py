"""The graph attention network of Velickovic and others, of any depth."""

from __future__ import annotations

from torch import nn

from trainers.graph.attention import Gat
from trainers.graph.layers import Activated
from trainers.models.graphs.base import GraphModel, num_features, widths


def build(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    layers: int = 2,
    hidden: int = 8,
    heads: int = 8,
    output_heads: int = 1,
    dropout: float = 0.6,
) -> nn.Module:
    """Return a GAT: layers of `heads` heads side by side with ELU between, and a last one with the mean of its heads.

    Args:
        hidden: width of one head of every layer but the last.
        output_heads: of the last layer; the paper has 8 for PubMed.
        dropout: of what goes into each layer, features included, and of attention weights.

    Raises:
        ModelError: when a vertex has no row of features.

    Shapes: features `[n, F]`, logits `[n, num_classes]`.

    Source: Velickovic et al. 2018, arXiv:1710.10903, section 3.3 (transductive).
    """
    *before, (last, _) = widths(num_features("gat", input_shape), hidden * heads, num_classes, layers)
    inner = [
        Activated(Gat(width, hidden, heads=heads, dropout=dropout), dropout=dropout, activation=nn.ELU())
        for width, _ in before
    ]
    output = Gat(last, num_classes, heads=output_heads, concat=False, dropout=dropout)
    return GraphModel([*inner, Activated(output, dropout=dropout)])
