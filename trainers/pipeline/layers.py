"""A model as a chain of layers that a pipeline may cut between: where the layers come from, skips and ties.

A chain comes from, in this order,

    model.pipeline_layers()     the model's own word: modules, or (name, module) pairs, in the order they run
    nn.Sequential               its children; Sequentials among them are opened
    traced.traced(model)        pieces of what its forward does, as torch.fx records it

A layer takes what the layer before returned, one tensor or a tuple of them. A *skip* jumps over layers: a module with
an attribute `stashes = ("name",)` returns `(output, *stashed)`, and one with `pops = ("name",)` is called with
`(*inputs, *popped)`. A parameter that several layers use is *tied*: every use is trained as a copy of its own, and
the copies' gradients are summed in the order of the layers, so that the bits do not depend on where the cuts are.

Left out: models that are none of these. They are refused with what to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from trainers.models.base import ModelError
from trainers.pipeline.tracing import traced


class Layer(NamedTuple):
    """One link of the chain.

    Args:
        index: its place. name: how the model calls it.
        stash, pop: names of skips that begin and end here.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    name: str
    module: nn.Module
    stash: tuple[str, ...] = ()
    pop: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"layer {self.index} ({self.name}, {type(self.module).__name__})"


class Use(NamedTuple):
    """One use of a parameter or buffer: the layer that holds it and its name there."""

    layer: int
    local: str


class Chain(NamedTuple):
    """A model as layers.

    Args:
        uses: for every parameter and buffer, by its name in the model and in the model's order, the layers that use it.
    """

    layers: tuple[Layer, ...]
    uses: dict[str, tuple[Use, ...]]

    def tied(self) -> dict[str, tuple[Use, ...]]:
        """Return the parameters that more than one layer uses."""
        return {
            name: uses
            for name, uses in self.uses.items()
            if len({use.layer for use in uses}) > 1 and isinstance(self.tensor(uses[0]), nn.Parameter)
        }

    def tensor(self, use: Use) -> object:
        """Return the parameter or buffer of a use."""
        owner, _, name = use.local.rpartition(".")
        return getattr(self.layers[use.layer].module.get_submodule(owner), name)


def chain(model: nn.Module) -> Chain:
    """Return the model as layers.

    Raises:
        ModelError: when the model is no chain, naming the layer, skip or parameter that is in the way.
    """
    layers = tuple(
        Layer(index, name, module, _skips(module, "stashes", index, name), _skips(module, "pops", index, name))
        for index, (name, module) in enumerate(_modules(model))
    )
    if not layers:
        raise ModelError(f"{type(model).__name__} has no layers", "return at least one from pipeline_layers()")
    _check_skips(layers)
    _check_norms(layers)
    return Chain(layers, _uses(model, layers))


def _check_norms(layers: Sequence[Layer]) -> None:
    for layer in layers:
        for name, part in layer.module.named_modules():
            if isinstance(part, _InstanceNorm) and part.track_running_stats:
                where = f"{layer}.{name}" if name else str(layer)
                message = f"{where} tracks running statistics by instance, which recomputation would move twice"
                raise ModelError(message, "use track_running_stats=False, or BatchNorm")


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if hasattr(model, "pipeline_layers"):
        return _listed(model, model.pipeline_layers())
    if _plain_sequential(model):
        return list(_opened(model, ""))
    return traced(model)


def _listed(model: nn.Module, entries: object) -> list[tuple[str, nn.Module]]:
    """Return what a model's own pipeline_layers() returned, with a name for each."""
    name, hint = type(model).__name__, "return a list of torch modules, or of pairs of a name and a module"
    if not isinstance(entries, Iterable):
        raise ModelError(f"pipeline_layers() of {name} returned {type(entries).__name__}", hint)
    known = {id(module): path for path, module in model.named_modules()}
    found: list[tuple[str, nn.Module]] = []
    for entry in entries:
        layer, module = entry if isinstance(entry, tuple) and len(entry) == 2 else (None, entry)
        if not isinstance(module, nn.Module) or not isinstance(layer, str | None):
            what = f"({type(layer).__name__}, {type(module).__name__})" if layer is not None else type(module).__name__
            raise ModelError(f"layer {len(found)} in pipeline_layers() of {name} is {what}: {entry!r:.60}", hint)
        found.append((layer or known.get(id(module)) or f"layer{len(found)}", module))
    return found


def _plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _opened(module: nn.Module, prefix: str) -> Sequence[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        if _plain_sequential(child) and not hasattr(child, "stashes") and not hasattr(child, "pops"):
            found += _opened(child, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", child))
    return found


def _skips(module: nn.Module, attribute: str, index: int, name: str) -> tuple[str, ...]:
    names = getattr(module, attribute, ())
    if not isinstance(names, tuple | list) or not all(isinstance(skip, str) for skip in names):
        layer = Layer(index, name, module)
        raise ModelError(f"{layer} has {attribute} = {names!r:.60}", f'write a tuple of names: {attribute} = ("name",)')
    return tuple(names)


def _check_skips(layers: Sequence[Layer]) -> None:
    """Hold every skip to one beginning and one end behind it."""
    began: dict[str, Layer] = {}
    ended: dict[str, Layer] = {}
    for layer in layers:
        for name in layer.pop:
            if name not in began:
                raise ModelError(f"{layer} pops {name!r}, which no layer before it stashes", "stash it in one of them")
            if name in ended:
                raise ModelError(f"{layer} pops {name!r}, which {ended[name]} has popped", "stash it under two names")
            ended[name] = layer
        for name in layer.stash:
            if name in began:
                raise ModelError(f"{layer} stashes {name!r}, as {began[name]} does", "give each skip its own name")
            began[name] = layer
    for name, layer in began.items():
        if name not in ended:
            raise ModelError(f"{layer} stashes {name!r}, which no layer pops", f"pop it, or do not stash {name!r}")


def _uses(model: nn.Module, layers: Sequence[Layer]) -> dict[str, tuple[Use, ...]]:
    """Find every parameter and buffer of the model in the layers.

    Raises:
        ModelError: when one is in no layer, or a layer has one that the model has not.
    """
    where: dict[int, list[Use]] = {}
    for layer in layers:
        for local, tensor in (*layer.module.named_parameters(), *layer.module.named_buffers()):
            where.setdefault(id(tensor), []).append(Use(layer.index, local))
    named = (*model.named_parameters(), *model.named_buffers())
    known = {id(tensor) for _, tensor in named}
    for layer in layers:
        for local, tensor in (*layer.module.named_parameters(), *layer.module.named_buffers()):
            if id(tensor) not in known:
                raise ModelError(
                    f"{layer} has a tensor {local!r} that the model has not, so no checkpoint could name it",
                    "build layers from the model's own submodules",
                )
    for name, tensor in named:
        if id(tensor) not in where:
            raise ModelError(f"{name!r} is in none of the model's {len(layers)} layers", "put its module into a layer")
    return {name: tuple(where[id(tensor)]) for name, tensor in named}
