"""ResGCN+: a deep graph network of residual blocks that normalise first."""

from __future__ import annotations

from torch import nn

from trainers.dropout import Dropout
from trainers.graph.layers import ResGcnPlus
from trainers.models.graphs.base import GraphModel, dense, num_features


def build(
    input_shape: tuple[int, ...], num_classes: int, *, layers: int = 32, hidden: int = 64, dropout: float = 0.5
) -> nn.Module:
    """Return a ResGCN+: dropout and an affine map, `layers` residual blocks, an affine map.

    Args:
        hidden: width of the residual stream.
        dropout: of the features, and of what goes into each convolution.

    Raises:
        ModelError: when a vertex has no row of features.

    Shapes: features `[n, F]`, logits `[n, num_classes]`.

    Source: GNNPipe's published code (see `ResGcnPlus`), which ends without the last norm, ReLU and dropout that the
    paper of the block, arXiv:2006.07739, has before its output layer.
    """
    start = nn.Sequential(Dropout(dropout), dense(num_features("resgcn", input_shape), hidden))
    blocks = (ResGcnPlus(hidden, dropout=dropout) for _ in range(layers))
    return GraphModel([start, *blocks, dense(hidden, num_classes)])
