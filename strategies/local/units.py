"""How a model becomes units: the pieces that local learning may cut between, the head last.

    model.pipeline_layers()   the model's own word: modules, or (name, module) pairs, in the order they run
    nn.Sequential             opened; a unit begins at each layer with weights that is no normalisation; what follows it
                              without weights (activations, pooling) is its own, a Flatten the next unit's
    a list of modules         taken as it is

Composed, the units are the model and share its parameters. The last is the *head*: it gives the class scores. A
residual network of n - 1 blocks thus has n units and a head: its stem, its blocks, and the mean with the affine map.

An auxiliary network repeats the architecture of later units at other widths and strides. A unit that can be built so
says it with a method,

    unit.auxiliary_unit(channels, stride) -> a fresh unit that takes `channels`, returns as many as this one, and has
                                             that stride
    head.auxiliary_head(shape)            -> a fresh head for one example's activation of that shape

and any other unit is copied, drawn afresh, and given its own input's shape by pooling and a linear map
(`auxiliary.py`). Left out: skips between units and tied weights, which are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from strategies.local.base import evaluating

Shape = tuple[int, ...]

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_AHEAD = (nn.Flatten, nn.Unflatten)


def units(model: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """Return a model's units, the head last.

    Raises:
        ValueError: when the model says nothing of its layers, has fewer than two units, or they share parameters.
    """
    listed: Any = getattr(model, "pipeline_layers", None)
    if callable(listed):
        found = [entry[1] if isinstance(entry, tuple) else entry for entry in listed()]
    elif isinstance(model, nn.Sequential):
        found = _grouped(_opened(model))
    elif isinstance(model, nn.Module) and not isinstance(model, nn.ModuleList):
        raise ValueError(
            f"{type(model).__name__} does not say what its units are; give it a method pipeline_layers() that returns "
            "its modules in order, or make it an nn.Sequential"
        )
    else:
        found = list(model)
    return checked(found)


def checked(found: Sequence[nn.Module]) -> list[nn.Module]:
    """Return units that can be trained apart.

    Raises:
        ValueError: for fewer than two, for skips between them, or for parameters that two of them share.
    """
    if len(found) < 2:
        raise ValueError(f"local learning needs at least 2 units, the last of them the head; got {len(found)}")
    owners: dict[int, int] = {}
    for index, unit in enumerate(found):
        for part in unit.modules():
            if getattr(part, "stashes", ()) or getattr(part, "pops", ()):
                raise ValueError(
                    f"{told(found, index)} has a skip to another unit, which gradients would have to cross"
                )
        for parameter in unit.parameters():
            owner = owners.setdefault(id(parameter), index)
            if owner != index:
                raise ValueError(f"{told(found, owner)} and {told(found, index)} share a parameter; untie them")
    return list(found)


def shapes(found: Sequence[nn.Module], input_shape: Sequence[int]) -> list[Shape]:
    """Return the shape of what each unit makes of one example.

    One example of zeros goes through, in evaluation mode.

    Raises:
        ValueError: naming the unit that raised or returned no tensor.
    """
    made: list[Shape] = []
    x = example(found, input_shape)
    for index, unit in enumerate(found):
        try:
            with evaluating(unit):
                x = unit(x)
        except Exception as error:
            raise ValueError(f"{told(found, index)} was given {list(x.shape)} and raised: {error}") from error
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{told(found, index)} returned {type(x).__name__}, expected one tensor")
        made.append(tuple(x.shape[1:]))
    return made


def check_scores(found: Sequence[nn.Module], made: Sequence[Shape], num_classes: int) -> None:
    """Refuse units whose head does not give one score a class.

    Raises:
        ValueError: with what it gives.
    """
    if made[-1] != (num_classes,):
        raise ValueError(
            f"{told(found, len(found) - 1)}, the head, gives {list(made[-1])} for an example, expected [{num_classes}]"
        )


def example(found: Sequence[nn.Module], input_shape: Sequence[int]) -> torch.Tensor:
    """Return one example of zeros: class ids where the first layer with weights is an embedding, numbers elsewhere."""
    parts = (part for unit in found for part in unit.modules())
    first = next((part for part in parts if any(True for _ in part.parameters(recurse=False))), None)
    weight = weight_of(found)
    dtype = torch.long if isinstance(first, nn.Embedding) else weight.dtype
    return torch.zeros(1, *input_shape, dtype=dtype, device=weight.device)


def weight_of(found: Sequence[nn.Module]) -> torch.Tensor:
    """Return the first parameter, whose type and device are those of numbers between units."""
    return next((parameter for unit in found for parameter in unit.parameters()), torch.zeros(()))


def told(found: Sequence[nn.Module], index: int) -> str:
    """Return how messages name a unit."""
    return f"unit {index} ({type(found[index]).__name__})"


def _opened(model: nn.Sequential) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in model:
        found += _opened(child) if type(child) is nn.Sequential else [child]
    return found


def _grouped(layers: Sequence[nn.Module]) -> list[nn.Module]:
    groups: list[list[nn.Module]] = []
    begun = False  # whether the last group has its layer with weights
    for layer in layers:
        weighted = any(True for _ in layer.parameters()) and not isinstance(layer, _NORMS)
        if not groups or (begun and (weighted or isinstance(layer, _AHEAD))):
            groups.append([])
            begun = False
        groups[-1].append(layer)
        begun = begun or weighted
    if len(groups) > 1 and not begun:  # a Flatten at the very end
        groups[-2:] = [groups[-2] + groups[-1]]
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups]
