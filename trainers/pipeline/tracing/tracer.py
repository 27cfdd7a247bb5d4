"""The graph of what a model's forward does in one mode, by torch.fx; exact or refused.

A plain fx trace is wrong without a word where a forward draws random numbers or changes a tensor in place. Here draws
that are no part of the graph are refused, and `+=` and `x[...] = y` stay in place. See `modes.py` for both modes.

Every module of torch.nn, BatchNorm above all, stays one call of the model's own module. Containers and users' modules
are traced through. fx patches torch for as long as it traces, so no other thread may run a model meanwhile.

Source: Reed et al. 2022, arXiv:2112.08429, "torch.fx", section 4 (symbolic tracing and what it cannot record).
"""

from __future__ import annotations

import linecache
import math
import operator
import random
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from trainers.models.base import ModelError

HINT = "give it a method pipeline_layers() that returns its layers in order, or make it an nn.Sequential"
IN_PLACE = tuple(
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
)
FACTORIES = (torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.eye, torch.rand, torch.randn)
_NOT_THE_USERS = (str(Path(torch.__file__).parent), __file__)


class Traced(NamedTuple):
    """A model's graph, and the tensors that its forward makes out of nothing, by the name the graph has for them."""

    graph: fx.Graph
    constants: dict[str, Tensor]


def where(node: fx.Node) -> str:
    """Return the module and the user's line that a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    parts = [f"{stack[-1][0]} ({stack[-1][1].__name__})"] if stack else []
    if "place" in node.meta:
        parts.append(_place(*node.meta["place"]))
    return " at ".join(parts) or f"operation {node.name}"


def _place(filename: str, number: int) -> str:
    return f"{filename}, line {number}, `{linecache.getline(filename, number).strip()}`"


def is_leaf(module: nn.Module) -> bool:
    """Return whether a module is one of torch's own, or made from one, which are not traced through."""
    return any(
        base.__module__.startswith(("torch.nn.", "torch.ao.nn."))
        and base is not nn.Module
        and base.__module__ != "torch.nn.modules.container"
        for base in type(module).__mro__
    )


class _Proxy(fx.Proxy):
    """Records `x += y` and `x[...] = y` as the changes in place that they are; fx's own makes `x = x + y` of them."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _recorded(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in IN_PLACE:
    setattr(_Proxy, f"__{_function.__name__}__", _recorded(_function))


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math,))
        # Functions that make a tensor of a size do not see a proxy among their arguments; these names do.
        self._autowrap_function_ids.update(map(id, FACTORIES))
        self._autowrap_search.append(torch)
        self.failed: str | None = None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Give the forward one input; its other arguments keep their defaults, as real values."""
        return root_fn, [self.root, self.create_proxy("placeholder", "input", (), {})]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Note the user's line; fx's own record of it costs the import of sympy."""
        node = super().create_node(*args, **kwargs)
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(_NOT_THE_USERS) and frame.f_code is not record.__code__:
            assert frame.f_back is not None
            frame = frame.f_back
        if frame.f_code is not record.__code__:
            node.meta["place"] = frame.f_code.co_filename, frame.f_lineno
        return node

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            names = [name for name, module in self.root.named_modules() if module is m]
            self.failed = self.failed or f"{names[0] if names else 'a module of no name'} ({type(m).__name__})"
            raise


def record(model: nn.Module, training: bool) -> Traced:
    """Return what the forward of a model with one input does in one mode.

    Raises:
        ModelError: when fx cannot trace it, naming the module and the line.
    """
    tracer = _Tracer()
    state = torch.get_rng_state(), random.getstate()
    constants: dict[str, Tensor] = {}
    with _untouched(model) as saved:
        own = set(model.__dict__)
        model.train(training)
        try:
            graph = tracer.trace(model)
        except Exception as error:
            place = tracer.failed or "its forward"
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_USERS)]
            if lines:
                place += f" at {_place(lines[-1].filename, lines[-1].lineno)}"
            said = f"{str(error).strip()}\n".splitlines()[0].split(". ")[0]
            reason = f"{type(error).__name__}: {said}"
            name = type(model).__name__
            raise ModelError(f"{name} is no chain of layers, and cannot be traced: {place}: {reason}", HINT) from error
        for module, attributes, _ in saved:
            for name, value in attributes.items():
                if isinstance(value, int | float | str) and name != "training" and module.__dict__.get(name) != value:
                    raise ModelError(
                        f"forward of {type(module).__name__} changes its own {name}, which a trace would freeze", HINT
                    )
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # generated code would wrap "torch.arange", which breaks later traces
            if node.op == "get_attr" and node.target in model.__dict__ and node.target not in own:
                constants[node.target] = model.__dict__[node.target]
    if not torch.equal(torch.get_rng_state(), state[0]) or random.getstate() != state[1]:
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        raise ModelError(
            f"forward of {type(model).__name__} draws random numbers that a trace would freeze",
            "draw them with a function of a tensor, such as torch.rand_like(x), or write pipeline_layers()",
        )
    return Traced(graph, constants)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[list[tuple[nn.Module, dict[str, Any], dict[str, Any]]]]:
    """Take back whatever tracing writes on the modules: their mode, fx's constants, proxies kept as attributes."""
    saved = [(module, dict(module.__dict__), dict(module._buffers)) for module in model.modules()]
    try:
        yield saved
    finally:
        for module, attributes, buffers in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)
