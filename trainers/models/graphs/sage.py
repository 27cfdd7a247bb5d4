"""GraphSAGE with the mean aggregator, over all neighbours, of any depth."""

from __future__ import annotations

from torch import nn

from trainers.graph.layers import Activated, Sage
from trainers.models.graphs.base import GraphModel, num_features, widths


def build(
    input_shape: tuple[int, ...], num_classes: int, *, layers: int = 2, hidden: int = 64, dropout: float = 0.5
) -> nn.Module:
    """Return a GraphSAGE: `layers` times dropout and `mean(neighbours) W + x R + b`, with ReLU between.

    Args:
        hidden: width of every layer but the last.
        dropout: of what goes into each layer, features included.

    Raises:
        ModelError: when a vertex has no row of features.

    Shapes: features `[n, F]`, logits `[n, num_classes]`.

    Source: Hamilton, Ying, Leskovec 2017, arXiv:1706.02216, algorithm 1, without sampling and without normalising rows.
    """
    sizes = widths(num_features("sage", input_shape), hidden, num_classes, layers)
    return GraphModel(
        Activated(Sage(*pair), dropout=dropout, activation=nn.ReLU() if index < layers - 1 else None)
        for index, pair in enumerate(sizes)
    )
