"""Which values of a traced graph can travel from stage to stage, and which every stage can compute for itself.

What travels are tensors with an example of the micro-batch in each row. What is made of sizes and of the model's own
tensors alone, such as a mask, a range of positions or a transposed weight, is computed wherever it is read. Anything
else, a tuple or a number taken out of a tensor, can do neither.

Nothing is run, so shapes are not known. A value of an unknown kind does not travel. That its rows are examples is
believed unless an operation says otherwise: one that sums over dimension 0, say, or swaps it. Where that belief is
wrong, for instance after `view(-1, n)`, stages that are cut there refuse the shape before they train.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import fx, nn

from trainers.pipeline.tracing.memory import called, changed, storage

_NUMBERS = {
    "size", "dim", "ndimension", "numel", "nelement", "item", "tolist", "stride", "storage_offset", "element_size",
    "get_device", "data_ptr", "type", "is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_same_size",
    "is_tensor", "equal", "allclose", "numpy",
}  # fmt: skip
_SIZES = {"size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "is_floating_point"}
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_TENSOR_ATTRIBUTES = {"data", "T", "mT", "H", "mH", "real", "imag"}
_TUPLES = {
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind", "max", "min",
    "median", "nanmedian", "mode", "sort", "topk", "kthvalue", "cummax", "cummin", "aminmax", "nonzero", "var_mean",
    "std_mean", "meshgrid", "broadcast_tensors", "svd", "qr", "slogdet", "frexp", "multi_head_attention_forward",
    "unique", "unique_consecutive", "lstm", "gru",
}  # fmt: skip
_RETURNS_TUPLE = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)
_RANDOM = ("rand", "dropout", "bernoulli", "normal", "multinomial", "poisson", "gumbel", "exponential", "uniform")
_OVER_ROWS = {  # rows are no examples any more if this argument, the dimension, is 0 or left out
    "cat": 1, "concat": 1, "stack": 1, "unbind": 1, "select": 1, "index_select": 1, "flatten": 1, "unsqueeze": 1,
    "sum": 1, "mean": 1, "std": 1, "var": 1, "prod": 1, "amax": 1, "amin": 1, "max": 1, "min": 1, "any": 1, "all": 1,
    "argmax": 1, "argmin": 1, "logsumexp": 1, "norm": 2, "chunk": 2, "split": 2, "tensor_split": 2,
}  # fmt: skip
_SWAPS = {"transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "permute", "t"}


class Values(NamedTuple):
    """What may be done with the values of a graph.

    Args:
        travels: tensors whose rows are examples. anywhere: what every piece can compute for itself.
    """

    travels: frozenset[fx.Node]
    anywhere: frozenset[fx.Node]


def survey(model: nn.Module, graph: fx.Graph) -> Values:
    """Return what may be done with the values of a graph that `_Tracer` has made of a model."""
    altered = {storage(model, target) for node in graph.nodes if (target := changed(model, node)) is not None}
    kinds: dict[fx.Node, str] = {}
    rows: dict[fx.Node, str] = {}
    anywhere: set[fx.Node] = set()
    for node in graph.nodes:
        kinds[node] = _kind(model, node, kinds)
        rows[node] = _rows(node, kinds[node], rows)
        if node.op == "get_attr" or (
            node.op in ("call_function", "call_method")
            and kinds[node] != "unknown"
            and (all(used in anywhere for used in node.all_input_nodes) or is_size(node))
            and storage(model, node) not in altered
            and not any(word in called(node) for word in _RANDOM)
        ):
            anywhere.add(node)
    travels = [node for node in graph.nodes if kinds[node] == "tensor" and rows[node] == "examples"]
    return Values(frozenset(travels), frozenset(anywhere))


# ------------------------------------------------------------------------------------------------------------ kinds


def _kind(model: nn.Module, node: fx.Node, kinds: Mapping[fx.Node, str]) -> str:
    """Return `tensor`, `tuple` (of tensors), `first` (a tuple that begins with one), `number` or `unknown`."""
    if node.op == "placeholder":
        return "tensor"
    if node.op == "get_attr":
        return "number" if node.target == "training" else "tensor"
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return "first" if isinstance(module, _RETURNS_TUPLE) or getattr(module, "return_indices", False) else "tensor"
    if node.op == "call_method":
        return _named(called(node))
    if node.op == "output":
        return "unknown"
    if node.target in (getattr, operator.getitem):
        whole = kinds[node.args[0]] if isinstance(node.args[0], fx.Node) else "number"
        return _part(whole, node.args[1], attribute=node.target is getattr)
    home = str(getattr(node.target, "__module__", None) or "")
    if home in ("_operator", "operator", "math"):
        found = {kinds[used] for used in node.all_input_nodes}
        return next((kind for kind in ("unknown", "first", "tuple", "tensor") if kind in found), "number")
    if home.startswith("torch") or getattr(torch, called(node), None) is node.target:
        return _named(called(node))
    return "unknown"


def _named(name: str) -> str:
    if name in _NUMBERS:
        return "number"
    return "tuple" if name in _TUPLES else "tensor"


def _part(whole: str, part: object, *, attribute: bool) -> str:
    """Return the kind of `whole.part` or `whole[part]`."""
    if whole == "tuple":
        return "tuple" if isinstance(part, slice) else "tensor"
    if whole == "first":
        return "tensor" if part == 0 else "unknown"
    if whole == "tensor" and attribute:
        return "tensor" if part in _TENSOR_ATTRIBUTES else "number"
    return whole


def is_size(node: fx.Node) -> bool:
    """Return whether a node asks a tensor for what does not depend on its numbers."""
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    return node.op == "call_method" and called(node) in _SIZES


# ------------------------------------------------------------------------------------------------------------- rows


def _rows(node: fx.Node, kind: str, rows: Mapping[fx.Node, str]) -> str:
    """Return what the rows of a value are: `examples`, something `else` that was made of them, or `nothing`."""
    if node.op == "placeholder":
        return "examples"
    found = {rows[used] for used in node.all_input_nodes}
    if kind == "number" or not found - {"nothing"}:
        return "nothing"
    before = "examples" if "examples" in found else "else"
    name, given = called(node), node.args[1:]
    if name in _SWAPS or (node.target is getattr and node.args[1] in ("T", "H")):
        dims = given[0] if given and isinstance(given[0], tuple | list) else given
        stays = (dims[0] == 0 if dims else False) if name == "permute" else bool(dims) and 0 not in dims
        return before if stays else ("else" if before == "examples" else "examples")
    if name in _OVER_ROWS:
        index = _OVER_ROWS[name]
        dim = node.args[index] if len(node.args) > index else node.kwargs.get("dim", node.kwargs.get("start_dim", 0))
        return "else" if dim is None or dim == 0 or (isinstance(dim, tuple | list) and 0 in dim) else before
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and kind == "tensor":
        part = given[0][0] if isinstance(given[0], tuple | list) and given[0] else given[0]
        of_tuple = called(node.args[0]) in _TUPLES or node.args[0].op == "call_module"
        whole = part is Ellipsis or (isinstance(part, slice) and part == slice(None))
        return before if of_tuple or whole else "else"
    return before
