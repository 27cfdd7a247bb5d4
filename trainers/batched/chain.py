"""Chains of dense layers, convolutions, poolings and ReLUs, differentiated by hand for many clients at once.

Stacked dense layers are batched matrix products whose gradients go straight into the weights when the optimizer is
plain SGD: no gradient is ever stored. A ReLU before a max pooling is computed after it, on a quarter of the numbers:
both are monotone, so values and gradients have the same bits. Convolutions take one client at a time on a CPU, where
oneDNN's grouped ones are slower than a loop; elsewhere they are grouped.

What is left out: anything but `nn.Sequential` of the layers above, which `general` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

_ATEN = torch.ops.aten


class Sink(Protocol):
    """What a layer tells about its parameters' gradients."""

    def matrix(self, name: str, rows: Tensor, inputs: Tensor) -> None:
        """Take `rows^T inputs`, the gradient of a stacked matrix `[c, out, in]`."""
        ...

    def whole(self, name: str, gradient: Tensor) -> None:
        """Take a gradient `[c, ...]`."""
        ...


class Link:
    """One layer without parameters. `forward` keeps what `backward` needs."""

    names: tuple[str, ...] = ()

    def forward(self, hidden: Tensor, weights: Sequence[Tensor], num_clients: int) -> Tensor:
        raise TypeError(f"{type(self).__name__} computes nothing")

    def backward(self, gradient: Tensor, weights: Sequence[Tensor], sink: Sink, first: bool) -> Tensor:
        """Return the gradient of the inputs, or anything at the `first` layer, whose inputs nobody asks about."""
        raise TypeError(f"{type(self).__name__} computes nothing")


class Dense(Link):
    """`nn.Linear` on `[c, B, in]`."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def forward(self, hidden: Tensor, weights: Sequence[Tensor], num_clients: int) -> Tensor:
        self._inputs = hidden
        transposed = weights[0].transpose(1, 2)
        if len(weights) == 1:
            return torch.bmm(hidden, transposed)
        return torch.baddbmm(weights[1].unsqueeze(1), hidden, transposed)

    def backward(self, gradient: Tensor, weights: Sequence[Tensor], sink: Sink, first: bool) -> Tensor:
        below = gradient if first else torch.bmm(gradient, weights[0])
        sink.matrix(self.names[0], gradient, self._inputs)
        if len(weights) > 1:
            sink.whole(self.names[1], gradient.sum(dim=1))
        return below


class Convolution(Link):
    """`nn.Conv2d` on `[B, c * channels, height, width]`, grouped by client when there are several."""

    def __init__(self, names: tuple[str, ...], layer: nn.Conv2d) -> None:
        self.names = names
        padding = layer.padding if isinstance(layer.padding, tuple) else (0, 0)
        self._geometry = (list(layer.stride), list(padding), list(layer.dilation))
        self._groups = layer.groups

    def forward(self, hidden: Tensor, weights: Sequence[Tensor], num_clients: int) -> Tensor:
        self._inputs = hidden
        bias = weights[1].flatten() if len(weights) > 1 else None
        stride, padding, dilation = self._geometry
        groups = self._groups * num_clients
        return functional.conv2d(hidden, _merged(weights[0]), bias, stride, padding, dilation, groups)

    def backward(self, gradient: Tensor, weights: Sequence[Tensor], sink: Sink, first: bool) -> Tensor:
        weight = weights[0]
        stride, padding, dilation = self._geometry
        below, change, _ = _ATEN.convolution_backward(
            gradient, self._inputs, _merged(weight), None, stride, padding, dilation, False, [0, 0],
            self._groups * len(weight), [not first, True, False],
        )  # fmt: skip
        sink.whole(self.names[0], change.unsqueeze(0) if len(weight) == 1 else change.view(weight.shape))
        if len(weights) > 1:
            sink.whole(self.names[1], gradient.sum(dim=(0, 2, 3)).view(weights[1].shape))
        return below


class Pooling(Link):
    """`nn.MaxPool2d` on images of any number of channels."""

    def __init__(self, layer: nn.MaxPool2d) -> None:
        sizes = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        self._window = [[size, size] if isinstance(size, int) else list(size) for size in sizes]
        self._ceil = layer.ceil_mode

    def forward(self, hidden: Tensor, weights: Sequence[Tensor], num_clients: int) -> Tensor:
        self._inputs = hidden
        pooled, self._places = _ATEN.max_pool2d_with_indices(hidden, *self._window, self._ceil)
        return pooled

    def backward(self, gradient: Tensor, weights: Sequence[Tensor], sink: Sink, first: bool) -> Tensor:
        return _ATEN.max_pool2d_with_indices_backward(gradient, self._inputs, *self._window, self._ceil, self._places)


class Rectifier(Link):
    """`nn.ReLU`."""

    def forward(self, hidden: Tensor, weights: Sequence[Tensor], num_clients: int) -> Tensor:
        self._outputs = torch.relu(hidden)
        return self._outputs

    def backward(self, gradient: Tensor, weights: Sequence[Tensor], sink: Sink, first: bool) -> Tensor:
        return _ATEN.threshold_backward(gradient, self._outputs, 0)


class Unfold(Link):
    """`nn.Flatten` of images, from `[B, c * channels, height, width]` to `[c, B, features]`."""

    def forward(self, hidden: Tensor, weights: Sequence[Tensor], num_clients: int) -> Tensor:
        self._shape, self._last = hidden.shape, hidden.is_contiguous(memory_format=torch.channels_last)
        split = hidden.reshape(len(hidden), num_clients, -1)
        return split.transpose(0, 1)

    def backward(self, gradient: Tensor, weights: Sequence[Tensor], sink: Sink, first: bool) -> Tensor:
        images = gradient.transpose(0, 1).reshape(self._shape)
        return images.contiguous(memory_format=torch.channels_last) if self._last else images


def parse(model: nn.Module, input_shape: Sequence[int]) -> list[Link] | None:
    """Return the links of a model that is a chain of known layers, or `None`.

    The first link of an MLP is its first dense layer: flattening the examples is left to whoever feeds them.
    """
    layers = _layers(model, "")
    if layers is None:
        return None
    links: list[Link] = []
    images, flat = len(input_shape) == 3, len(input_shape) == 1
    for name, layer in layers:
        kind = type(layer)
        if _is_hooked(layer) or any(parameter.requires_grad is False for parameter in layer.parameters()):
            return None
        names = tuple(f"{name}{key}" for key, value in layer.named_parameters(recurse=False))
        if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            if images and links:
                links.append(Unfold())
            images, flat = False, True
        elif kind is nn.Linear and flat:
            links.append(Dense(names))
        elif kind is nn.Conv2d and images and layer.padding_mode == "zeros" and layer.padding != "same":
            links.append(Convolution(names, layer))
        elif kind is nn.MaxPool2d and images and not layer.return_indices and links:
            place = len(links) - 1 if isinstance(links[-1], Rectifier) else len(links)
            links.insert(place, Pooling(layer))
        elif kind is nn.ReLU and links:
            links.append(Rectifier())
        elif not (kind is nn.Identity or (kind is nn.Dropout and layer.p == 0)):
            return None
    names = [name for link in links for name in link.names]
    whole = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if not links or sorted(names) != sorted(whole) or len(whole) != len(list(model.parameters())):
        return None  # a layer used twice has gradients of two places
    return links if flat and isinstance(links[-1], Dense) and not list(model.buffers()) else None


def _layers(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]] | None:
    if type(module) is not nn.Sequential:
        return [(prefix, module)]
    if _is_hooked(module):
        return None
    found: list[tuple[str, nn.Module]] = []
    for name, child in module._modules.items():  # named_children would leave out a layer's second use
        inner = _layers(child, f"{prefix}{name}.") if child is not None else None
        if inner is None:
            return None
        found += inner
    return found


def _is_hooked(module: nn.Module) -> bool:
    kinds: tuple[Any, ...] = (
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
    )  # fmt: skip
    return any(kinds) or "forward" in vars(module)


def _merged(weight: Tensor) -> Tensor:
    """Return stacked filters `[c, out, in, h, w]` as those of one grouped convolution."""
    return weight[0] if len(weight) == 1 else weight.flatten(0, 1)
