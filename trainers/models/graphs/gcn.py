"""The graph convolutional network of Kipf and Welling, of any depth."""

from __future__ import annotations

from torch import nn

from trainers.graph.layers import Activated, Gcn
from trainers.models.graphs.base import GraphModel, num_features, widths


def build(
    input_shape: tuple[int, ...], num_classes: int, *, layers: int = 2, hidden: int = 16, dropout: float = 0.5
) -> nn.Module:
    """Return a GCN: `layers` times dropout and `P x W + b`, with ReLU between.

    Deep ones lose accuracy: nothing carries a vertex's own features past the averaging (see GCNII).

    Args:
        hidden: width of every layer but the last.
        dropout: of what goes into each layer, features included.

    Raises:
        ModelError: when a vertex has no row of features.

    Shapes: features `[n, F]`, logits `[n, num_classes]`.

    Source: Kipf and Welling 2017, arXiv:1609.02907, eq. 9 and section 5.2; there, weight decay is on the first
    layer only.
    """
    sizes = widths(num_features("gcn", input_shape), hidden, num_classes, layers)
    return GraphModel(
        Activated(Gcn(*pair), dropout=dropout, activation=nn.ReLU() if index < layers - 1 else None)
        for index, pair in enumerate(sizes)
    )
