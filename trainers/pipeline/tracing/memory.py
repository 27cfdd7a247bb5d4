"""Which values of a traced graph share memory, and which of its operations change memory in place.

Nothing is run. An operation that is not known to make new memory is taken to return a view of its first argument.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from trainers.pipeline.tracing.tracer import FACTORIES, IN_PLACE

_FRESH = {
    "add", "sub", "mul", "div", "truediv", "matmul", "bmm", "mm", "neg", "pow", "cat", "concat", "stack", "clone",
    "where", "exp", "log", "sqrt", "sin", "cos", "tanh", "sigmoid", "softmax", "log_softmax", "gelu", "silu", "sum",
    "mean", "linear", "conv1d", "conv2d", "layer_norm", "embedding", "zeros_like", "ones_like", "full_like",
    "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
}  # fmt: skip
_RESHAPES = {
    "t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_", "resize_", "resize_as_", "set_",
    "as_strided_",
}  # fmt: skip
_WRITES = {"__setitem__", *(f"__{function.__name__}__" for function in IN_PLACE)}  # on real tensors, met in a forward


def called(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls; nothing for other nodes."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def reshapes(node: fx.Node) -> bool:
    """Return whether a node changes the shape of a tensor in place."""
    return called(node) in _RESHAPES


def changed(model: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the value that a node changes in place, if it does."""
    out, name = node.kwargs.get("out"), called(node)
    if isinstance(out, fx.Node):
        return out
    if name in ("batch_norm", "instance_norm"):
        statistics = node.args[1] if len(node.args) > 1 else node.kwargs.get("running_mean")
        return statistics if isinstance(statistics, fx.Node) else None
    if node.op == "call_module":
        in_place = getattr(model.get_submodule(str(node.target)), "inplace", False) is True
    else:
        in_place = node.kwargs.get("inplace") is True or (name.endswith("_") and not name.endswith("__"))
        in_place |= node.target in IN_PLACE or node.target is operator.setitem or name in _WRITES
    return first_of(node) if in_place else None


def storage(model: nn.Module, node: fx.Node) -> fx.Node:
    """Return the node that made the memory which a value may be a view of."""
    while True:
        if changed(model, node) is None:
            if node.op == "call_module" and any(True for _ in model.get_submodule(str(node.target)).parameters()):
                return node
            if called(node) in _FRESH or node.target in FACTORIES:
                return node
        first = first_of(node)
        if first is None:
            return node
        node = first


def first_of(node: fx.Node) -> fx.Node | None:
    """Return the first value among a node's arguments."""
    return next(iter(node.all_input_nodes), None)
