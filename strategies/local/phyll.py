"""PhyLL, physical local learning: fixed black boxes, which nobody can differentiate, between trained linear maps.

    h_k = W_k [ box_k(|h|/||h||), h ],    h = h_{k-1}        goodness  g_k = cos(|h_k|, p_k)
    loss of layer k    mean log(1 + exp(-theta (g_k+ - g_k-)))       answer  the label with the largest sum_k g_k

A box is a physical system: numbers go in, others come out, and there is no more to ask of it. Here a model's unit plays
it: frozen, without parameters, and raising `NotDifferentiable` when a gradient is asked through it. `p_k` is a fixed
random direction of unit length, drawn from the seed. Positive and negative examples have their true and a wrong label
written in.

Source: Momeni, Rahmani, Malléjac, del Hougne, Fleury 2023, "Backpropagation-free training of deep physical neural
networks", Science 382:1297, arXiv:2304.11042; the acoustic system of its program github.com/MomeniAli/PhyLL
(`Acoustic/acoustics_pnn.py`): what goes into a box, theta = 4, Adam with lr 5e-4 (`OPTIMIZER`), 10 steps on each batch.
The optical system has theta = 5, lr 5e-5 and 20 steps, the digital network theta = 4, lr 1e-4 and 25 steps.

Deviations: what a layer passes on was computed before its steps on that batch, where the program computes it again
after them; a label's height is its example's own (`label_input.py`); batches are small where the program's is the
whole data set. `h_k` has the size of the box's output, so that boxes chain as the model's units do. The model's head
has no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.local.base import Carry, LocalModule, LocalRule, drawing, evaluating
from strategies.local.label_input import with_every_label, with_labels, wrong_labels
from strategies.local.units import shapes
from strategies.seeds import integer

OPTIMIZER: Mapping[str, object] = {"name": "adam", "lr": 5e-4}


class NotDifferentiable(Exception):
    """Somebody asked a black box for a gradient."""


def build(theta: float = 4.0, inner_steps: int = 10) -> LocalRule:
    """Return the PhyLL rule.

    Args:
        theta: how steep the loss is.
        inner_steps: optimizer steps of a layer on each batch.

    Raises:
        ValueError: when there are no steps.
    """
    if inner_steps < 1:
        raise ValueError(f"inner_steps must be at least 1, got {inner_steps}")
    modules = partial(_modules, theta=theta, inner_steps=inner_steps)
    return LocalRule("phyll", modules, _start, lambda carry: carry["scores"])


class BlackBox(nn.Module):
    """A fixed system of which only outputs can be had; its unit's parameters become buffers."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit
        for part in unit.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, parameter.detach())

    def forward(self, x: Tensor) -> Tensor:
        return _Opaque.apply(x, self.unit)  # type: ignore[no-any-return, no-untyped-call]


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, unit: nn.Module) -> Tensor:
        with evaluating(unit):
            return unit(x)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotDifferentiable("a black box has no gradient; train what comes after it, from detached inputs")


class PhysicalLayer(LocalModule):
    """A black box and the linear map that learns from it.

    Args:
        direction: `p_k [n]`, of unit length.
    """

    def __init__(self, box: nn.Module, linear: nn.Linear, direction: Tensor, *, theta: float, inner_steps: int) -> None:
        super().__init__()
        self.box, self.linear, self.theta, self.inner_steps = box, linear, theta, inner_steps
        self.direction: Tensor
        self.register_buffer("direction", direction)
        self._kept: tuple[Tensor, int] | None = None

    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        num_positive = len(carry["positive"])
        with torch.no_grad():
            read = self._read(torch.cat([carry["positive"], carry["negative"]]))
            h = self.linear(read)
        self._kept = read, self.inner_steps
        return {"positive": h[:num_positive], "negative": h[num_positive:]}

    def learn(self) -> float:
        if self._kept is None:
            raise RuntimeError("learn() has no batch; call forward first")
        read, steps_left = self._kept
        self._kept = (read, steps_left - 1) if steps_left > 1 else None
        with torch.enable_grad():
            loss = pair_loss(self._goodness(self.linear(read)), self.theta)
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def infer(self, carry: Carry) -> Carry:
        with evaluating(self):
            batch, num_classes = carry["scores"].shape
            h = self.linear(self._read(carry["h"].flatten(0, 1)))
            scores = carry["scores"] + self._goodness(h).view(batch, num_classes)
            return {"h": h.unflatten(0, (batch, num_classes)), "scores": scores}

    def _read(self, h: Tensor) -> Tensor:
        """Return what the linear map reads: the box's answer to the amplitudes, and the signal itself."""
        flat = h.flatten(1)
        length = flat.norm(dim=1).view(-1, *[1] * (h.dim() - 1))
        return torch.cat([self.box(h.abs() / (length + 1e-6)).flatten(1), flat], dim=1)

    def _goodness(self, h: Tensor) -> Tensor:
        return functional.cosine_similarity(h.abs(), self.direction[None], dim=1)


def pair_loss(goodness: Tensor, theta: float) -> Tensor:
    """Return the mean of log(1 + exp(-theta (g+ - g-))); the first half of `goodness [2 B]` is g+."""
    positive, negative = goodness.chunk(2)
    return functional.softplus(-theta * (positive - negative)).mean()


def _modules(
    units: Sequence[nn.Module],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    seed: int,
    theta: float,
    inner_steps: int,
) -> list[LocalModule]:
    boxes = units[:-1]
    if not boxes:
        raise ValueError("phyll needs a unit before the head to be a black box, got the head alone")
    given = shapes(boxes, input_shape)
    modules: list[LocalModule] = []
    for index, (box, before, after) in enumerate(zip(boxes, [input_shape, *given], given, strict=False)):
        if len(after) != 1:
            raise ValueError(f"phyll: unit {index} gives {list(after)}, expected a vector, which the next box reads")
        with drawing(integer(seed, "phyll layer", index)):
            linear = nn.Linear(after[0] + math.prod(before), after[0])
            direction = torch.randn(after[0])
        modules.append(
            PhysicalLayer(BlackBox(box), linear, direction / direction.norm(), theta=theta, inner_steps=inner_steps)
        )
    return modules


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int) -> Carry:
    if y is None:
        return {"h": with_every_label(x, num_classes), "scores": x.new_zeros(len(x), num_classes)}
    negative = with_labels(x, wrong_labels(y, num_classes, seed), num_classes)
    return {"positive": with_labels(x, y, num_classes), "negative": negative}
