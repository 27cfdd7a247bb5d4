"""A user's own model and data, as `examples/own_code.yaml` names them."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import make_moons
from torch import nn


def two_moons(examples: int, noise: float) -> dict[str, object]:
    """Return two interleaved half circles: the fields of a data set, as plain arrays."""
    x, y = make_moons(examples, noise=noise, random_state=0)
    x = x.astype(np.float32)
    cut = examples * 4 // 5
    return {
        "name": "two-moons",
        "train_x": x[:cut],
        "train_y": y[:cut],
        "test_x": x[cut:],
        "test_y": y[cut:],
        "num_classes": 2,
    }


def build(width: int) -> nn.Module:
    """Return a small network from two coordinates to two classes."""
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))
