"""tpSGD: each layer is drawn towards its own random projection of the label, by a formula and without autograd.

    z = W x,  h = s(z),  target t = P y        P fixed, drawn once; y one-hot
    l2   dL/dW = [(h - t) * s'(z)] x^T         of L = 1/2 |t - h|^2
    l1   dL/dW = [sign(h - t) * s'(z)] x^T     of L = |t - h|_1

Source: Lomnitz, Daniels, Zhang, Piacentino 2022, "Learning with Local Gradients at the Edge", arXiv:2208.08503: the
layer losses and updates as the secondary page junaidaliop.github.io/zij/math/tpsgd gives them. That page leaves out
`x^T`, without which an update has not the shape of the weights.

What the sources at hand do not say, and how it is here:
- the factor 2 of the squared loss is in the learning rate; batches are averaged;
- the head is the output layer and learns by cross-entropy, whose gradient is `(softmax - y) x^T`;
- a convolution's target is the same all over its feature map. With `maps="mean"`, the default, what it is compared
  with is the map's mean, so `h - t` is too; with `each`, the literal reading, it is each place, which sees too little
  of the image to tell its class: layers then give the mean target everywhere, and with ReLU fall silent. The figures
  are below. A target of its own for each place ended at 94 % with tanh and 23 % with ReLU, and is left out;
- P is uniform on s(0) - 1 to s(0) + 1, also under ReLU, which cannot reach half of its targets. That it lies evenly
  about s(0) is what matters: on digits, three ReLU layers of 100 and 30 epochs of SGD with lr 0.05 and 0.2 end at
  96 % and 97 % (standard normal P: the same), but with P on (0, 1) at 89 % and 13 %; tanh is alike, and sigmoid, at
  lr 1, ends at 98 % about 1/2 and 96 % about 0;
- every layer learns from every batch during one forward sweep, rather than one layer to its end before the next.
P is a function of the seed and the layer's number. Recurrent layers are left out.

Digits through two convolutions of 16 and 32 filters and a layer of 100, 15 epochs of 50, SGD at the best of four rates
(backpropagation with ReLU: 95 %): `mean` 97 % with tanh, 78 % with ReLU; `each` 12 % and 11 %, which is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from strategies.local.base import Carry, LocalModule, LocalRule, drawing, evaluating
from strategies.seeds import generator

OPTIMIZER: Mapping[str, object] = {"name": "sgd", "lr": 0.05}


_DERIVATIVES: Mapping[type[nn.Module], Callable[[Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda z, h: (z > 0).to(z.dtype),
    nn.Sigmoid: lambda z, h: h * (1 - h),
    nn.Tanh: lambda z, h: 1 - h * h,
    nn.Identity: lambda z, h: torch.ones_like(z),
}
"""Elementwise functions by their modules: s'(z) from z and s(z)."""
_PASSIVE = (nn.Flatten, nn.Unflatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity)


def build(loss: str = "l2", maps: str = "mean") -> LocalRule:
    """Return the tpSGD rule.

    Args:
        loss: `l2` or `l1`.
        maps: what of a feature map meets the target: its `mean`, or `each` place.

    Raises:
        ValueError: when there is no such loss, or no such reading of maps.
    """
    for given, known in ((loss, ("l1", "l2")), (maps, ("mean", "each"))):
        if given not in known:
            raise ValueError(f"tpsgd has {' and '.join(known)}, got {given!r}")
    modules = partial(_modules, signs=loss == "l1", each_place=maps == "each")
    return LocalRule("tpsgd", modules, _start, lambda carry: carry["h"])


class TargetProjection(LocalModule):
    """A weighted layer that learns by its random target; `projection [n, C]` is None in the head.

    Args:
        unit: the model's own, whose modules `parts` are in the order they run.
    """

    def __init__(
        self, unit: nn.Module, parts: Parts, projection: Tensor | None, *, signs: bool, each_place: bool
    ) -> None:
        super().__init__()
        self.unit, self._parts = unit, parts
        self.signs, self.each_place = signs, each_place
        self.projection: Tensor | None
        self.register_buffer("projection", projection)
        self._kept: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        x = carry["h"]
        with drawing(seed, targets.device):
            for part in self._parts.before:
                x = part(x)
            z = self._parts.weighted(x)
            h = z if self.projection is None else self._parts.activation(z)
            self._kept = x, z, h, targets
            for part in self._parts.after:
                h = part(h)
        return {"h": h}

    @torch.no_grad()
    def learn(self) -> float:
        if self._kept is None:
            raise RuntimeError("learn() has no batch; call forward first")
        x, z, h, targets = self._kept
        self._kept = None
        delta, loss = self._output(h, targets) if self.projection is None else self._hidden(z, h, targets)
        _put_gradients(self._parts.weighted, x, delta / len(x))
        return loss

    def infer(self, carry: Carry) -> Carry:
        with evaluating(self):
            return {"h": self.unit(carry["h"])}

    def _output(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        delta = logits.softmax(dim=1) - functional.one_hot(targets, logits.shape[1])
        return delta, functional.cross_entropy(logits, targets).item()

    def _hidden(self, z: Tensor, h: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Return dL/dz of each example, summed over places, and the mean loss."""
        assert self.projection is not None
        projected = self.projection.to(h.dtype)[:, targets].T
        projected = projected.view(*projected.shape, *[1] * (h.dim() - 2))
        residual = h - projected
        if h.dim() > 2 and not self.each_place:
            residual = (h.mean(dim=(2, 3), keepdim=True) - projected).expand_as(h)
        losses = residual.abs() if self.signs else residual.square() / 2
        slope = _DERIVATIVES[type(self._parts.activation)](z, h)
        return (residual.sign() if self.signs else residual) * slope, losses.sum().item() / len(h)


class Parts(NamedTuple):
    """A unit taken apart: parameter-free modules, the layer with weights, its activation, parameter-free modules."""

    before: tuple[nn.Module, ...]
    weighted: nn.Linear | nn.Conv2d
    activation: nn.Module
    after: tuple[nn.Module, ...]


def taken_apart(unit: nn.Module, index: int) -> Parts:
    """Return the parts of a unit.

    Raises:
        ValueError: when it is not one affine map or convolution, one activation, and modules without parameters.
    """
    modules = [part for part in unit.modules() if not isinstance(part, nn.Sequential)]
    places = [place for place, part in enumerate(modules) if isinstance(part, nn.Linear | nn.Conv2d)]
    expected = "one Linear or Conv2d, then ReLU, Tanh, Sigmoid or none, with pooling, dropout and Flatten around them"
    if len(places) != 1:
        raise ValueError(f"tpsgd: unit {index} has {len(places)} layers with weights, expected {expected}")
    before, after = modules[: places[0]], modules[places[0] + 1 :]
    weighted = modules[places[0]]
    activation = after.pop(0) if after and type(after[0]) in _DERIVATIVES else nn.Identity()
    for part in (*before, *after):
        if not isinstance(part, _PASSIVE):
            raise ValueError(f"tpsgd: unit {index} has a {type(part).__name__}, expected {expected}")
    assert isinstance(weighted, nn.Linear | nn.Conv2d)
    if isinstance(weighted, nn.Conv2d) and (weighted.padding_mode != "zeros" or isinstance(weighted.padding, str)):
        given = f"{weighted.padding!r} of {weighted.padding_mode}"
        raise ValueError(f"tpsgd: unit {index} has padding {given}, expected a number of zeros, as padding=1")
    return Parts(tuple(before), weighted, activation, tuple(after))


def _put_gradients(layer: nn.Linear | nn.Conv2d, x: Tensor, delta: Tensor) -> None:
    if isinstance(layer, nn.Linear):
        layer.weight.grad = delta.T @ x
        summed = delta.sum(dim=0)
    else:
        assert not isinstance(layer.padding, str), "refused by taken_apart"
        layer.weight.grad = conv2d_weight(  # type: ignore[no-untyped-call]
            x, layer.weight.shape, delta, layer.stride, layer.padding, layer.dilation, layer.groups
        )
        summed = delta.sum(dim=(0, 2, 3))
    if layer.bias is not None:
        layer.bias.grad = summed


def _modules(
    units: Sequence[nn.Module],
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    seed: int,
    signs: bool,
    each_place: bool,
) -> list[LocalModule]:
    parts = [taken_apart(unit, index) for index, unit in enumerate(units)]
    head = parts[-1]
    if not isinstance(head.activation, nn.Identity) or head.after:
        raise ValueError("tpsgd: the last unit is the head and must end in its Linear, which gives the class scores")
    modules: list[LocalModule] = []
    for index, (unit, part) in enumerate(zip(units, parts, strict=True)):
        projection = None if part is head else _projection(part, num_classes, seed, index)
        modules.append(TargetProjection(unit, part, projection, signs=signs, each_place=each_place))
    return modules


def _projection(parts: Parts, num_classes: int, seed: int, index: int) -> Tensor:
    size = parts.weighted.weight.shape[0]
    middle = float(parts.activation(torch.zeros(())))
    drawn = middle + generator(seed, "tpsgd projection", index).uniform(-1.0, 1.0, (size, num_classes))
    return torch.from_numpy(drawn).float().to(parts.weighted.weight.device)


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int) -> Carry:
    return {"h": x}
