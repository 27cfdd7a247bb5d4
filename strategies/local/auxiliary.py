"""Auxiliary networks: fresh copies of later units' architecture, made to fit where they are put.

A unit with a method `auxiliary_unit` (`units.py`) is built for the channels and the stride that are asked for. Any
other is copied, drawn afresh, and fed through an adapter that gives it its own input's shape: pooling to the size,
then a linear map over channels, each only where shapes differ. The adapter is ours; the paper's networks never need it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from strategies.local.base import evaluating
from strategies.local.units import Shape, told, weight_of


def strides(widths: Sequence[int]) -> list[int]:
    """Return the stride of each unit of an auxiliary network.

    Every doubling of channels is owed one halving of the image; a unit pays at most one, and what is owed goes on to
    the next unit. What the last one still owes is forgotten.

    Args:
        widths: channels of what comes in, then of what each unit returns.

    Source: Ma et al. 2024, arXiv:2402.17318, section 3.2, as its authors' program does it: the ratio of widths is
    rounded down to a whole number and its logarithm too. There widths never shrink; here a narrower unit owes nothing.
    """
    found, owed = [], 0
    for before, after in pairwise(widths):
        owed += max(after // before, 1).bit_length() - 1
        found.append(2 if owed else 1)
        owed -= bool(owed)
    return found


def network(
    units: Sequence[nn.Module], made: Sequence[Shape], end: int, selected: Sequence[int], num_classes: int, norm: bool
) -> nn.Module:
    """Return an auxiliary network for the output of unit `end`, of the architecture of the `selected` units.

    Draws from torch's generator. Convolutions are drawn from N(0, 2 / (k^2 C_out)), all else as torch does.

    Args:
        units: of the model, the head last. made: the shape each returns.
        norm: whether to normalise over the batch before the affine map, unless the head makes its own.
    """
    x = torch.zeros(1, *made[end], dtype=weight_of(units).dtype, device=weight_of(units).device)
    layers: list[nn.Module] = []
    steps = strides([made[end][0], *(made[index][0] for index in selected)])
    for index, stride in zip(selected, steps, strict=True):
        build = getattr(units[index], "auxiliary_unit", None)
        shape = tuple(x.shape[1:])
        if build is not None:
            added = [build(shape[0], stride)]
        else:
            added = [*_adapter(shape, made[index - 1]), fresh(units[index], told(units, index))]
        layers.append(like(units, nn.Sequential(*added) if len(added) > 1 else added[0]))
        with evaluating(layers[-1]):
            x = layers[-1](x)
    shape = tuple(x.shape[1:])
    build = getattr(units[-1], "auxiliary_head", None)
    head = classifier(shape, num_classes, norm=norm) if build is None else build(shape)
    return nn.Sequential(*layers, like(units, head))


def classifier(shape: Shape, num_classes: int, *, norm: bool = False) -> nn.Module:
    """Return the mean over an image or a sequence and one affine map.

    Args:
        shape: of one example: `[C, H, W]`, `[T, D]` or `[D]`.
        norm: whether a BatchNorm comes before the map.
    """
    pool, size = flat(shape)
    return nn.Sequential(*pool, *([nn.BatchNorm1d(size)] if norm else []), nn.Linear(size, num_classes))


def flat(shape: Shape) -> tuple[list[nn.Module], int]:
    """Return layers that make a vector of an activation by its mean over places, and the vector's size.

    Raises:
        ValueError: for a shape that is no image, sequence or vector.
    """
    if len(shape) == 3:
        return [nn.AdaptiveAvgPool2d(1), nn.Flatten()], shape[0]
    if len(shape) == 2:
        return [Mean()], shape[1]
    if len(shape) == 1:
        return [], shape[0]
    raise ValueError(f"an activation of shape {list(shape)} is no image [C, H, W], sequence [T, D] or vector [D]")


class Mean(nn.Module):
    """The mean over the places of a sequence."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.mean(dim=1)


def like(units: Sequence[nn.Module], made: nn.Module) -> nn.Module:
    """Return a new network in the units' type, on their device, its convolutions drawn from N(0, 2 / (k^2 C_out))."""
    for part in made.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    weight = weight_of(units)
    return made.to(weight.device, weight.dtype)


def fresh(unit: nn.Module, name: str) -> nn.Module:
    """Return a copy of a module with all its weights drawn anew.

    Raises:
        ValueError: when a part has weights and no method that draws them.
    """
    copied = copy.deepcopy(unit).requires_grad_(True).train()
    for where, part in copied.named_modules():
        if any(True for _ in (*part.parameters(recurse=False), *part.buffers(recurse=False))):
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is None:
                raise ValueError(
                    f"{name}: {where or 'it'} ({type(part).__name__}) has weights and no reset_parameters(), so no "
                    "auxiliary network can have a fresh copy; write one, or auxiliary_unit(channels, stride)"
                )
            reset()
    return copied


def _adapter(shape: Shape, wanted: Shape) -> list[nn.Module]:
    if shape == wanted:
        return []
    if len(shape) == len(wanted) == 3:
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(wanted[1:])] if shape[1:] != wanted[1:] else []
        return [*pool, *([nn.Conv2d(shape[0], wanted[0], 1, bias=False)] if shape[0] != wanted[0] else [])]
    if len(shape) == len(wanted) == 2 and shape[0] == wanted[0]:
        return [nn.Linear(shape[1], wanted[1])]
    if len(wanted) == 1:
        pool, size = flat(shape)
        return [*pool, *([nn.Linear(size, wanted[0])] if size != wanted[0] else [])]
    raise ValueError(
        f"no adapter makes {list(wanted)} of {list(shape)} for an auxiliary network; cut elsewhere, or give "
        "the unit an auxiliary_unit(channels, stride)"
    )
