"""A model's operators as the planner sees them: recorded from one forward on plain tensors.

Operators of torch are put into the kinds of `strategies.sharded`; one that belongs to none keeps its own name, and the
planner lets every rank compute it whole. Dropout is left out (evaluation mode), as it sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from strategies.sharded import Graph, Operator
from trainers.sharded.boxing import Layers

_SAME = ("detach", "alias", "contiguous", "clone", "lift_fresh", "_to_copy")
_POINTWISE = (
    "relu", "gelu", "tanh", "sigmoid", "silu", "elu", "leaky_relu", "exp", "log", "sqrt", "rsqrt", "pow", "abs",
    "masked_fill", "where", "expand", "hardtanh", "softplus", "mish", "hardswish", "hardsigmoid", "clamp", "sin", "cos",
)  # fmt: skip
_BY_EXAMPLE = (
    "convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "native_batch_norm",
    "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
)  # fmt: skip


def trace(model: nn.Module, x: Tensor, targets: Tensor, loss: Callable[[Any, Tensor], Tensor]) -> Graph:
    """Return the graph of one forward, the loss included. The model is left as it was."""
    training, layers = model.training, Layers(model)
    try:
        model.eval()
        with torch.no_grad(), _Recorder(model, x, targets, layers) as recorder:
            loss(model(x), targets)
    finally:
        layers.remove()
        model.train(training)
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    sizes = {parameter.element_size() for parameter in model.parameters()}
    return Graph(tuple(recorder.operators), wanted, frozenset({"input", "targets"}), max(sizes, default=4))


class _Recorder(TorchDispatchMode):
    """Writes operators down; tensors that only look at another one differently in no way are that one."""

    def __init__(self, model: nn.Module, x: Tensor, targets: Tensor, layers: Layers) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self._layers = layers
        self._names: dict[int, str] = {id(parameter): name for name, parameter in model.named_parameters()}
        self._names |= {id(x): "input", id(targets): "targets"}
        self._held: list[Tensor] = []  # so that no identity is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        made = [leaf for leaf in (out if isinstance(out, tuple | list) else [out]) if isinstance(leaf, Tensor)]
        self._held += made
        given = [arg for arg in _flat(args) if isinstance(arg, Tensor)]
        if not made or not self._depends(given):
            return out  # positions, masks: every rank makes them by itself
        if (name in _SAME or (name == "expand" and made[0].shape == given[0].shape)) and id(given[0]) in self._names:
            self._names[id(made[0])] = self._names[id(given[0])]
            return out
        if name in ("unbind", "split", "split_with_sizes", "chunk"):
            kind = "select" if name == "unbind" else "narrow"
            dim = _argument(func, args, kwargs, "dim")
            for each in made:
                self._note(kind, given[:1], each, {"dim": dim})
            return out
        kind, inputs, arguments = _kind(func, name, args, kwargs or {}, given, made[0])
        self._note(kind, inputs, made[0], arguments)
        return out

    def _depends(self, tensors: list[Tensor]) -> bool:
        """Return whether some tensor comes of a parameter or of the data."""
        return any(id(tensor) in self._names for tensor in tensors)

    def _note(self, kind: str, inputs: list[Tensor], made: Tensor, arguments: Mapping[str, Any]) -> None:
        self._held += inputs
        layer, _ = self._layers.now()
        names = tuple(self._names.get(id(tensor), f"constant {id(tensor)}") for tensor in inputs)
        shapes = tuple(tuple(tensor.shape) for tensor in inputs)
        self._names[id(made)] = f"%{len(self.operators)}"
        shape = tuple(made.shape)
        self.operators.append(Operator(kind, names, self._names[id(made)], shapes, shape, dict(arguments), layer))


def _kind(
    func: Any, name: str, args: Any, kwargs: Mapping[str, Any], given: list[Tensor], made: Tensor
) -> tuple[str, list[Tensor], dict[str, Any]]:
    """Return an operator's kind, what of its tensors counts, and what the kind asks for."""
    if name in ("mm", "bmm"):
        return "matmul", given, {}
    if name == "addmm":
        return ("linear", given, {}) if given[0].dim() == 1 else (name, given, {})
    if name in ("t", "transpose", "permute"):
        return "permute", given, {"dims": _order(name, args, given[0].dim())}
    if name in ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten"):
        return "reshape", given, {}
    if name in ("add", "sub"):
        return ("add" if len(given) == 2 else "pointwise"), given, {}
    if name in ("mul", "div", "neg"):
        return ("linear-pointwise" if len(given) == 1 else "mul" if name == "mul" else "pointwise"), given, {}
    if name in _POINTWISE:
        return "pointwise", given, {}
    if name == "embedding":
        return "embedding", given, {}
    if name == "native_layer_norm":
        return "layer-norm", given, {"dims": len(args[1])}
    if name in ("_softmax", "_log_softmax"):
        return "softmax", given, {"dim": args[1]}
    if name.startswith("_scaled_dot_product"):
        return "attention", given[:3], {}
    if name == "select":
        return "select", given, {"dim": args[1]}
    if name in ("sum", "mean") and len(args) > 1 and args[1] is not None:
        return "sum", given, {"dims": tuple(args[1]), "keep": made.dim() == given[0].dim()}
    if name == "nll_loss_forward":
        return "loss", given[:2], {}
    if name in _BY_EXAMPLE:
        return "by-example", given, {}
    return name, given, {}


def _flat(args: Any) -> list[Any]:
    return [leaf for arg in args for leaf in (arg if isinstance(arg, list | tuple) else [arg])]


def _order(name: str, args: Any, dims: int) -> tuple[int, ...]:
    if name == "permute":
        return tuple(int(dim) % dims for dim in args[1])
    order = list(range(dims))
    if dims > 1:
        first, second = (args[1], args[2]) if name == "transpose" else (0, 1)
        order[first], order[second] = order[second], order[first]
    return tuple(order)


def _argument(func: Any, args: Any, kwargs: Mapping[str, Any] | None, name: str) -> int:
    """Return an argument of an operator, wherever it was given."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            value = args[place] if place < len(args) else (kwargs or {}).get(name, argument.default_value)
            return int(value)
    return 0
