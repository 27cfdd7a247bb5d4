"""Models of a user's own that are hard to share out, and a loss for what they return."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tied(nn.Module):
    """In the manner of Hugging Face: initialised from outside, embedding and head tied, an object with `logits`."""

    def __init__(self, num_classes: int, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.body = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(width, num_classes, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.apply(self._start)
        with torch.no_grad():
            for block in self.body:
                block[0].weight[: width // 2].mul_(0.5)
                block[0].weight.T[0] += torch.linspace(0, 1, width)

    def _start(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.1)

    def forward(self, tokens: Tensor) -> SimpleNamespace:
        hidden = self.embed(tokens)
        for block in self.body:
            hidden = hidden + self.scale * block(hidden)
        if self.training:
            self.steps += 1
        return SimpleNamespace(logits=self.head(hidden), hidden=hidden)


def tied(num_classes: int, mapping: bool = False) -> nn.Module:
    """Return the model; with `mapping` one that returns a mapping, as older ones do."""
    return Mapped(num_classes) if mapping else Tied(num_classes)


class Mapped(Tied):
    """The same, with a mapping."""

    def forward(self, tokens: Tensor) -> Any:
        return vars(super().forward(tokens))


def loss(returned: Any, targets: Tensor) -> Tensor:
    """Return a cross-entropy with a penalty on what lies below the head."""
    scores = functional.cross_entropy(returned.logits.flatten(0, -2), targets.flatten())
    return scores + 0.01 * returned.hidden.square().mean()


class Multiplied(nn.Module):
    """Multiplies by views of its weights itself, one of them frozen and one without a trace in autograd."""

    def __init__(self, num_classes: int, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_classes, width)
        self.first = nn.Parameter(torch.randn(width, width) / 5)
        self.frozen = nn.Parameter(torch.randn(width, width) / 5, requires_grad=False)
        self.body = Doubled(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = torch.tanh(self.embed(tokens) @ self.first.t())
        hidden = torch.tanh(hidden @ self.frozen.t()) + self.body(hidden)
        return self.head(torch.tanh(hidden @ self.first.detach().t()))


class Doubled(nn.Module):
    """Uses its weight once as it is, once turned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / 5)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(hidden @ self.weight) @ self.weight[:, : len(self.weight)].t()
