"""The rules of local learning as rows of one contract suite; a new rule adds one row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

INPUT, CLASSES, WIDTH = (12,), 3, 16


def layers(depth: int) -> list[nn.Module]:
    """Hidden layers of one width, with buffers and random numbers, and a head."""
    sizes = [INPUT[0], *[WIDTH] * depth]
    hidden = [
        nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(0.1))
        for before, after in pairwise(sizes)
    ]
    return [*hidden, nn.Linear(WIDTH, CLASSES)]


def plain(depth: int) -> list[nn.Module]:
    """Hidden layers of weights and an activation, and a head: what a rule without autograd takes."""
    sizes = [INPUT[0], *[WIDTH] * depth]
    hidden = [nn.Sequential(nn.Linear(before, after), nn.Tanh(), nn.Dropout(0.1)) for before, after in pairwise(sizes)]
    return [*hidden, nn.Linear(WIDTH, CLASSES)]


def plain_images(depth: int) -> list[nn.Module]:
    """Convolutions and an activation, and a head."""
    channels = [1, *[4] * depth]
    hidden = [nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.Tanh()) for before, after in pairwise(channels)]
    return [*hidden, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))]


def images(depth: int) -> list[nn.Module]:
    """Convolutions of one width, and a head."""
    channels = [1, *[4] * depth]
    hidden = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(channels)
    ]
    return [*hidden, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, CLASSES))]


class Row(NamedTuple):
    """One rule as it is tested.

    Args:
        rule: its name. arguments: its own.
        units: number of hidden layers -> units, the head last, drawn from torch's generator.
        input_shape: of an example.
        has_head: whether the rule trains the model's head; else it has none, or its own.
        is_flat: whether the most that is kept for backward is the same for models of any depth.
        adam: whether it is Adam that tells the clouds apart.
        steps, lr: of SGD with momentum 0.9 on three clouds of points, whose classes it then tells apart.
    """

    rule: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  # never written to
    units: Callable[[int], Sequence[nn.Module]] = layers
    input_shape: tuple[int, ...] = INPUT
    has_head: bool = True
    is_flat: bool = True
    adam: bool = False
    steps: int = 30
    lr: float = 0.05


ROWS = [
    Row("auglocal"),
    Row("auglocal", {"depth": 3, "decay": 0.0, "modules": "each"}, images, (1, 6, 6), steps=40, lr=0.1),
    Row("auglocal", {"depth": 1, "modules": 3}, is_flat=False),
    Row("dgl"),
    Row("dgl", {"modules": 2}, images, (1, 6, 6), is_flat=False),
    Row("predsim", {"beta": 0.9}),
    Row("predsim", {"features": 16}, images, (1, 6, 6), steps=40, lr=0.1),
    Row("counter-current"),
    Row("counter-current", {"clip": 0.0}, images, (1, 6, 6)),
    Row("forward-forward", has_head=False),
    Row("forward-forward", {"answer": "softmax"}, images, (1, 6, 6), has_head=False, is_flat=False, lr=0.01),
    Row("noprop", {"blocks": 3, "hidden": 16}, has_head=False, is_flat=False, adam=True, lr=0.01),
    Row("noprop", {"blocks": 2, "hidden": 16, "dim": 5}, images, (1, 6, 6), False, False, True, lr=0.01),
    Row("phyll", {"inner_steps": 3}, has_head=False, steps=20),
    Row("tpsgd", {}, plain),
    Row("tpsgd", {"loss": "l1"}, plain_images, (1, 6, 6)),
]


def batch(row: Row, size: int = 12) -> tuple[Tensor, Tensor]:
    """Examples of three clouds, and which cloud each is of."""
    generator = torch.Generator().manual_seed(5)
    centres = 2 * torch.randn(CLASSES, *row.input_shape, generator=generator)
    y = torch.arange(size) % CLASSES
    return centres[y] + 0.3 * torch.randn(size, *row.input_shape, generator=generator), y
