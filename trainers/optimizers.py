"""Optimizers by name, with the arguments of the experiment file: every class of `torch.optim`, and the project's own.

The project's (`strategies.optimizers`) are given parameters with their names where those are known, by which tensors
can be excluded; torch's are given the parameters alone.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from strategies.optimizers import OPTIMIZERS
from strategies.optimizers.layerwise import Layerwise
from trainers.errors import HintedError
from trainers.uncompiled import spare_compiler


class OptimizerError(HintedError):
    """An optimizer section names no optimizer, or gives it arguments it does not take."""


@cache
def classes() -> dict[str, type[torch.optim.Optimizer]]:
    """Return every optimizer of `torch.optim` that needs no closure, by its lower-case name, and the project's own."""
    found = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    }
    torchs = {name: kind for name, kind in found.items() if name not in ("optimizer", "lbfgs", "sparseadam")}
    return {**torchs, **OPTIMIZERS}


def resolve(section: Mapping[str, Any]) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Return the optimizer's class and keyword arguments.

    Where torch offers a fused step and the section does not say otherwise, it is used: for small models on a
    CPU the optimizer is a third of a step, and the fused one takes a fifth of the time of the default.

    Raises:
        OptimizerError: when the name or an argument is unknown to this version of torch.
    """
    known = classes()
    name = str(section["name"]).lower()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise OptimizerError(
            f"no optimizer {section['name']!r} in torch.optim",
            f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}",
        )
    arguments = {key: section[key] for key in ("lr", "momentum", "weight_decay") if section.get(key) is not None}
    arguments.update(section.get("kwargs") or {})
    accepted = _accepted(known[name])
    for key in arguments:
        if key not in accepted:
            raise OptimizerError(f"{name} takes no argument {key!r}", f"it takes: {', '.join(sorted(accepted))}")
    if "fused" in accepted and not arguments.keys() & {"fused", "foreach", "differentiable"}:
        arguments["fused"] = True
    return known[name], arguments


@cache
def _accepted(kind: type[torch.optim.Optimizer]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.__init__).parameters) - {"self", "params"}


def build(section: Mapping[str, Any], parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """Return the optimizer of a section; see `resolve` for errors. An optimizer's own ValueErrors pass through.

    Args:
        parameters: parameters, `(name, parameter)` pairs, or groups as torch has them, of either.
    """
    spare_compiler()
    kind, arguments = resolve(section)
    given = list(parameters)
    if not issubclass(kind, Layerwise):
        given = [
            {**each, "params": [_bare(one) for one in each["params"]]} if isinstance(each, dict) else _bare(each)
            for each in given
        ]
    return kind(given, **arguments)


def _bare(parameter: Any) -> Any:
    return parameter[1] if isinstance(parameter, tuple) else parameter


def plain_lr(section: Mapping[str, Any]) -> float | None:
    """Return the step size of `w -= lr * gradient` when that is all that the section asks for, else `None`."""
    kind, arguments = resolve(section)
    others = {key: value for key, value in arguments.items() if key not in ("lr", "fused", "foreach", "dampening")}
    lr = float(arguments.get("lr", 1e-3))
    if kind is not torch.optim.SGD or any(others.values()) or abs(lr) > torch.finfo(torch.float32).max:
        return None
    return lr


def aligned(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient laid out in memory as its parameter is.

    torch's fused steps on a CPU walk through both in the order of memory and, up to 2.13, do not look at strides:
    a gradient laid out differently is applied to the wrong elements. `backward()` takes care of that, but
    `torch.autograd.grad`, `torch.func` and gradients computed by hand do not.
    """
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)


def remembered(optimizer: torch.optim.Optimizer | None, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return what an optimizer remembers, as `key/parameter name -> tensor`; nothing for plain steps."""
    if optimizer is None:
        return {}
    return {
        f"{key}/{name}": value
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if torch.is_tensor(value)
    }


def remind(
    optimizer: torch.optim.Optimizer | None, named: Mapping[str, nn.Parameter], memory: Mapping[str, Tensor]
) -> None:
    """Give a fresh optimizer what another one of the same kind remembered."""
    if optimizer is None:
        return
    for path, value in memory.items():
        key, name = path.split("/", 1)
        optimizer.state[named[name]][key] = value.clone()


def copies(section: Mapping[str, Any], dtype: torch.dtype) -> float:
    """Return the bytes that an optimizer remembers, as a multiple of those of the weights; tried on a small weight."""
    if plain_lr(section) is not None:  # plain steps remember nothing
        return 0.0
    probe = nn.Parameter(torch.zeros(32, 32, dtype=dtype))
    optimizer = build(section, [("weight", probe)])
    probe.grad = torch.zeros_like(probe)
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    num_bytes = sum(value.numel() * value.element_size() for value in held if value.numel() > 1)
    return num_bytes / (probe.numel() * probe.element_size())


@cache
def _slots(name: str, arguments: str) -> Mapping[str, bool]:
    section = {"name": name, **json.loads(arguments)}
    probe = nn.Parameter(torch.zeros(2))
    optimizer = build(section, [probe])
    probe.grad = torch.zeros_like(probe)
    optimizer.step()
    return {slot: getattr(value, "shape", ()) == probe.shape for slot, value in optimizer.state[probe].items()}


def slots(section: Mapping[str, Any]) -> Mapping[str, bool]:
    """Return what an optimizer remembers of a parameter, by its own names: whether of each element, or just once."""
    return _slots(section["name"], json.dumps({key: value for key, value in section.items() if key != "name"}))


def defaults(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments an optimizer works with, its own defaults where the section says nothing: `lr`, ..."""
    kind, arguments = resolve(section)
    own = inspect.signature(kind.__init__).parameters
    known = {name: p.default for name, p in own.items() if p.default is not inspect.Parameter.empty}
    return {**known, **arguments}
