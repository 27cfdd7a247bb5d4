"""Multinomial logistic regression: the convex model, for checking algorithms against what is known of them."""

from __future__ import annotations

import math

from torch import nn


def build(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return one affine map from the flattened example to the classes.

    Shapes: examples `[B, *input_shape]`, logits `[B, num_classes]`.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))
