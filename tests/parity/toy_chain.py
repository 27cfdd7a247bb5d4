"""Random chains of layers with skips and ties, and the plain way to run them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Plain(nn.Module):
    def __init__(self, width: int, linear: nn.Linear | None = None) -> None:
        super().__init__()
        self.linear = linear or nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) + 0.5 * x


class Stash(Plain):
    def __init__(self, width: int, name: str) -> None:
        super().__init__(width)
        self.stashes = (name,)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), torch.sin(x)


class Pop(Plain):
    def __init__(self, width: int, name: str) -> None:
        super().__init__(width)
        self.pops = (name,)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return super().forward(x) * torch.sigmoid(skip)


class Two(Plain):
    """Returns a pair, which the next layer takes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x.cos()


class One(Plain):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x - y)


class Chain(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def pipeline_layers(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        value: tuple[Tensor, ...] = (x,)
        skips: dict[str, Tensor] = {}
        for layer in self.layers:
            out = layer(*value, *(skips.pop(name) for name in getattr(layer, "pops", ())))
            out = out if isinstance(out, tuple) else (out,)
            names = getattr(layer, "stashes", ())
            value, rest = out[: len(out) - len(names)], out[len(out) - len(names) :]
            skips.update(zip(names, rest, strict=True))
        return value[0]


def build(
    input_shape: tuple[int, ...], num_classes: int, *, kinds: str, width: int = 5, dropout: float = 0.0
) -> nn.Module:
    """Return a chain: p plain, d dropout, b batch norm, t tied to the first plain layer, ( and ) a skip, 2 a pair."""
    layers: list[nn.Module] = [nn.Linear(int(np.prod(input_shape)), width)]
    tied: nn.Linear | None = None
    names: list[str] = []
    for index, kind in enumerate(kinds):
        if kind == "p":
            layers.append(Plain(width))
        elif kind == "t":
            layer = Plain(width, tied)
            tied = layer.linear
            layers.append(layer)
        elif kind == "(":
            names.append(f"skip{index}")
            layers.append(Stash(width, names[-1]))
        elif kind == ")":
            layers.append(Pop(width, names.pop()))
        elif kind == "2":
            layers += [Two(width), One(width)]
        elif kind == "d":
            layers.append(nn.Dropout(dropout))
        elif kind == "b":
            layers.append(nn.BatchNorm1d(width))
    layers.append(nn.Linear(width, num_classes))
    return Chain(layers)


def halves(returned: Tensor, targets: Tensor) -> Tensor:
    """A loss that is no cross-entropy."""
    return (returned - targets[:, None].to(returned.dtype) / 7).abs().mean()


def breaks(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a chain of which the third layer takes another width than it is given."""
    wide = nn.Linear(int(np.prod(input_shape)), 6)
    return nn.Sequential(wide, nn.ReLU(), nn.Linear(7, 7), nn.ReLU(), nn.Linear(7, num_classes))
