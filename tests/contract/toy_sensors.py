"""Two kinds of sensors with inputs of their own shape, and networks with a body for each below one top (FLEEG).

Also sensors of one kind, of which one is broken.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

SHAPES = ((2, 3), (12,))


def data(wrong: str = "") -> dict[str, object]:
    """Return 160 readings of four sensors, those with an odd number twice as wide; three classes."""
    rng = np.random.default_rng(0)
    rows, labels, owners = np.zeros((160, 12), np.float32), rng.integers(0, 3, 160), np.arange(160) % 4
    centres = rng.normal(size=(2, 3, 12)).astype(np.float32) * 2
    for row, (label, owner) in enumerate(zip(labels, owners, strict=True)):
        width = int(np.prod(SHAPES[owner % 2]))
        rows[row, :width] = centres[owner % 2, label, :width] + rng.normal(size=width)
    fields: dict[str, object] = {
        "name": "sensors", "train_x": rows, "train_y": labels, "test_x": rows[:3], "test_y": labels[:3],
        "client_of": np.array(["north", "south", "west", "xeast"])[owners],
        "client_shapes": [SHAPES[owner % 2] for owner in range(4)],
    }  # fmt: skip
    if wrong == "wide":
        fields["client_shapes"] = [(2, 3), (13,), (2, 3), (12,)]
    if wrong == "few":
        fields["client_shapes"] = [(2, 3), (12,)]
    if wrong == "other":
        fields["input_shape"] = (5,)
    return fields


def broken() -> dict[str, object]:
    """Return readings of six like sensors; those of sensor 2 are so large that training on them diverges."""
    rng = np.random.default_rng(1)
    rows, labels, owners = rng.normal(size=(90, 4)).astype(np.float32), rng.integers(0, 3, 90), np.arange(90) % 6
    rows[owners == 2] *= 1e30
    return {"train_x": rows, "train_y": labels, "test_x": rows[:2], "test_y": labels[:2], "client_of": owners}


class Sensor(nn.Module):
    """A body for one shape of input below a top that all share."""

    def __init__(self, width: int, top: int, num_classes: int) -> None:
        super().__init__()
        self.body, self.top = nn.Linear(width, top), nn.Linear(top, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.tanh(self.body(x.flatten(1))))


def sensor(input_shape: tuple[int, ...], num_classes: int, wrong: str = "") -> nn.Module:
    """Return the network of a shape; `wrong` makes one that does not go with those of other shapes."""
    width = int(np.prod(input_shape))
    if wrong == "top":
        return Sensor(width, width, num_classes)
    if wrong == "refuses" and len(input_shape) == 1:
        raise ValueError("only grids are welcome")
    if wrong == "fails" and len(input_shape) == 1:
        return Sensor(width - 1, 5, num_classes)
    return Sensor(width, 5, num_classes)
