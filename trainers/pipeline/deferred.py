"""Weight gradients that a pipeline computes itself: those that can wait, the W of a zero bubble, and large ones.

After `install`, `nn.Linear` and convolutions compute only the gradient of their input in backward, and put what the
weight's gradient needs aside; `Store.run` computes it later, while the next stage would otherwise wait. Other layers
(norms, embeddings) compute both at once, since theirs is small.

The gradient of a linear layer's weight is added up over micro-batches where it lies, by the product itself, and lies
there again in the next step. Autograd makes a new matrix of every micro-batch, adds it, and gives it back: for 4 MiB
1.5 ms on one core, more than the product of 64 rows. So large linear layers do the same under schedules that do not
wait, from backward itself (`Store(at_once=True)`).

Where activations are kept in 8 bits (`trainers.activations`), what a weight's gradient needs stays so until it is
computed: read in backward and put aside, it would wait in full.

Source: Qi et al. 2024, arXiv:2401.10241, section 2: the backward pass as B (input) and W (weight).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.activations import unpack
from trainers.optimizers import aligned

LARGE_BYTES = 2 << 20
"""Of a linear layer's weight, from which on a function of our own costs less than adding its gradients apart. At 1 MiB,
whose memory an allocator hands out again, no difference could be measured; at 4 MiB it is some per cent of a step."""


class Store:
    """Weight gradients put aside, by micro-batch, in the order their layers were reached.

    Args:
        keep: what is kept of a layer's input; asked in its forward. `unpack` gives the tensor back.
        at_once: nothing waits; what is put aside is computed there and then.
    """

    def __init__(self, keep: Callable[[Tensor], Any] | None = None, *, at_once: bool = False) -> None:
        self.keep, self.at_once = keep, at_once
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        self._gradients: dict[int, Tensor] = {}
        self.microbatch = 0

    @torch.no_grad()
    def put(self, work: Callable[[], None]) -> None:
        """Put work aside, or do it at once."""
        if self.at_once:
            work()
        else:
            self._waiting.setdefault(self.microbatch, []).append(work)

    def add_product(self, parameter: Tensor, left: Tensor, right: Tensor) -> None:
        """Add a product to a parameter's gradient, where the gradient of the step before was if this is the first.

        Only of large layers, and where nothing is kept in 8 bits: in these cases schedules that do not wait add so,
        too, and every schedule has the same bits.
        """
        if self.keep is not None or _num_bytes(parameter) < LARGE_BYTES:
            accumulate(parameter, left @ right)
            return
        if parameter.grad is not None:
            parameter.grad.addmm_(left, right)
        else:
            lying = self._gradients.get(id(parameter))
            if lying is None:
                lying = self._gradients[id(parameter)] = torch.empty_like(parameter)
            parameter.grad = torch.mm(left, right, out=lying)
        _tell(parameter)

    @torch.no_grad()
    def run(self, microbatch: int) -> None:
        """Compute what one micro-batch has put aside."""
        for work in self._waiting.pop(microbatch, ()):
            work()

    def __len__(self) -> int:
        return sum(len(works) for works in self._waiting.values())


def waits(layer: nn.Module) -> bool:
    """Return whether a layer's weight gradient is one that `install` makes wait."""
    return type(layer) is nn.Linear or _plain_convolution(layer)


def install(module: nn.Module, store: Store) -> None:
    """Make linear and convolution layers below `module` put their weight gradients into `store`.

    All where these wait, the large linear ones where not.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear and (not store.at_once or _num_bytes(layer.weight) >= LARGE_BYTES):
            layer.forward = _Linear(layer, store)
        elif _plain_convolution(layer) and not store.at_once:
            layer.forward = _Convolution(layer, store)


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _ours(x: Tensor, weight: Tensor) -> bool:
    """Return whether a weight's gradient is computed here: one that autograd would put down, and tell nobody of."""
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and weight.is_leaf
        and not weight._backward_hooks
        and not torch.is_autocast_enabled(x.device.type)
        and not torch._C._are_functorch_transforms_active()
    )


def _plain_convolution(layer: nn.Module) -> bool:
    return (
        type(layer) in (nn.Conv1d, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )


class _Linear:
    def __init__(self, layer: nn.Linear, store: Store) -> None:
        self.layer, self.store = layer, store

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if not _ours(x, weight):
            return functional.linear(x, weight, bias)
        return _LinearFunction.apply(x, weight, bias, self.store)


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, store: Store) -> Tensor:
        context.save_for_backward(None if store.keep else x, weight, bias)
        context.kept = store.keep(x) if store.keep else None
        context.store, context.parameters = store, (weight, bias)
        made = functional.linear(x, weight, bias)
        # Of three dimensions and more torch returns a view of a matrix; one made here could not be changed in place.
        return torch.ops.aten._unsafe_view(made, made.shape) if made._is_view() else made

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        x, weight, bias = context.saved_tensors
        kept = context.kept if x is None else x
        of = context.parameters  # what hooks give back for a saved parameter is another tensor, without its gradient

        def later() -> None:
            x = unpack(kept)
            flat = grad.reshape(-1, grad.shape[-1])
            context.store.add_product(of[0], flat.t(), x.reshape(-1, x.shape[-1]))
            if bias is not None and bias.requires_grad:
                accumulate(of[1], flat.sum(0))

        context.store.put(later)
        return (grad @ weight if context.needs_input_grad[0] else None), None, None, None


class _Convolution:
    def __init__(self, layer: nn.Conv1d | nn.Conv2d, store: Store) -> None:
        self.layer, self.store = layer, store

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        settings = (self.layer.stride, self.layer.padding, self.layer.dilation, self.layer.groups)
        if not _ours(x, weight):
            return self.layer._conv_forward(x, weight, bias)
        return _ConvolutionFunction.apply(x, weight, bias, settings, self.store)


class _ConvolutionFunction(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any, store: Store) -> Tensor:
        context.save_for_backward(None if store.keep else x, weight, bias)
        context.kept = store.keep(x) if store.keep else None
        context.settings, context.store, context.parameters = settings, store, (weight, bias)
        stride, padding, dilation, groups = settings
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Any:
        x, weight, bias = context.saved_tensors
        kept = context.kept if x is None else x
        of = context.parameters  # what hooks give back for a saved parameter is another tensor, without its gradient
        stride, padding, dilation, groups = context.settings
        sizes = None if bias is None else [bias.shape[0]]

        def gradients(mask: list[bool]) -> Any:
            x = unpack(kept)
            return torch.ops.aten.convolution_backward(
                grad, x, weight, sizes, stride, padding, dilation, False, [0] * len(stride), groups, mask
            )

        def later() -> None:
            _, of_weight, of_bias = gradients([False, True, bias is not None])
            accumulate(of[0], of_weight)
            if bias is not None and bias.requires_grad:
                accumulate(of[1], of_bias)

        context.store.put(later)
        return (gradients([True, False, False])[0] if context.needs_input_grad[0] else None), None, None, None, None


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """Add a gradient to a parameter's, as autograd would."""
    if parameter.grad is None:
        parameter.grad = aligned(gradient, parameter)  # autograd would lay it out like the weight
    else:
        parameter.grad += gradient
    _tell(parameter)


def _tell(parameter: Tensor) -> None:
    """Call the hooks that autograd calls when it has added to a gradient."""
    for hook in list((parameter._post_accumulate_grad_hooks or {}).values()):
        hook(parameter)
