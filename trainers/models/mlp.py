"""A multi-layer perceptron with ReLU, for features and for small images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def build(
    input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (200,), dropout: float = 0.0
) -> nn.Module:
    """Return fully connected layers over the flattened example.

    Args:
        hidden: width of each hidden layer. `[200, 200]` on MNIST is the "2NN" of McMahan et al. 2017,
            arXiv:1602.05629, section 3.
        dropout: probability of zeroing a hidden unit in training; no such layer at 0.

    Shapes: examples `[B, *input_shape]`, logits `[B, num_classes]`.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = size
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
