"""A rank's part of what a checkpoint holds, under the parameters' names in the whole model.

    model             parameters and floating-point buffers
    counters          integer buffers, such as BatchNorm's count of batches
    optimizer.SLOT    what the optimizer remembers of each parameter, by its own name for it
    memory.*          ranges of activations that are kept in 8 bits, see `keeping`

Names say nothing about stages, so a run goes on with another number of stages, or on one device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainers.pipeline.keeping import export_ranges, restore_ranges
from trainers.pipeline.part import Part
from trainers.pipeline.update import Update

Trees = Mapping[str, Mapping[str, Tensor]]


class Holder(Protocol):
    """A rank: its part of the model, and what moves it."""

    @property
    def part(self) -> Part[Any]: ...
    @property
    def update(self) -> Update: ...


def export(rank: Holder, replica: int = 0) -> dict[str, dict[str, Tensor]]:
    """Return this rank's part; of a tied parameter, the rank of its first use has it.

    Args:
        replica: of other ones than the first, it is what they alone have: ranges, and a share of what the optimizer
            remembers where it is shared out.
    """
    trees: dict[str, dict[str, Tensor]] = {}
    if not replica:
        first = rank.part.is_first_use
        trees["model"] = {name: tensor.detach() for name, tensor in rank.part.floats.items() if first[name]}
        trees["counters"] = {name: tensor for name, tensor in rank.part.counters.items() if first[name]}
    done = set()
    for name, parameter in rank.update.own if not replica or len(rank.update.shares) > 1 else ():
        if not rank.part.is_first_use[name] or name in done or rank.update.optimizer is None:
            continue
        done.add(name)
        remember(rank.update.optimizer, name, parameter, trees)
    return trees | export_ranges(rank.part.chunks, replica)


def remember(optimizer: Optimizer, name: str, parameter: Tensor, trees: dict[str, dict[str, Tensor]]) -> None:
    """Add what an optimizer knows of a parameter to trees, as `optimizer.SLOT`."""
    for slot, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor | int | float | bool):
            trees.setdefault(f"optimizer.{slot}", {})[name] = torch.as_tensor(value)


def remind(optimizer: Optimizer, name: str, parameter: Tensor, trees: Trees) -> None:
    """Give a fresh optimizer what `remember` added; nothing where it added nothing."""
    held = {
        tree.removeprefix("optimizer."): values[name]
        for tree, values in trees.items()
        if tree.startswith("optimizer.") and name in values
    }
    if held:
        optimizer.state[parameter] = {slot: _like(parameter, value) for slot, value in held.items()}


@torch.no_grad()
def restore(rank: Holder, trees: Trees, replica: int = 0) -> None:
    """Take this rank's part out of the whole state."""
    restore_ranges(rank.part.chunks, trees, replica)
    for tree, tensors in (("model", rank.part.floats), ("counters", rank.part.counters)):
        for name, tensor in tensors.items():
            if tree == "model" or name in trees.get(tree, {}):
                tensor.copy_(trees[tree][name])
    for name, parameter in rank.part.own:
        parameter.copy_(trees["model"][name])  # every copy of a tied one
    for name, parameter in rank.update.own:
        if rank.update.optimizer is not None:
            remind(rank.update.optimizer, name, parameter, trees)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a copy that lies in memory as the parameter does (channels last, say): fused optimizers rely on that."""
    if value.shape == parameter.shape and value.dim():
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value.clone()


def whole(ranks: Sequence[Any]) -> dict[str, dict[str, Tensor]]:
    """Return a copy of the whole state of a pipeline whose ranks are all in this process."""
    return copied(merge([export(rank, rank.replica) for rank in ranks], ranks[0].part.names))


def copied(trees: Trees) -> dict[str, dict[str, Tensor]]:
    """Return a state with tensors of its own."""
    return {tree: {name: tensor.clone() for name, tensor in tensors.items()} for tree, tensors in trees.items()}


def merge(parts: Sequence[Trees], names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Return the whole state of all ranks' parts, each tree in the model's order."""
    whole: dict[str, dict[str, Tensor]] = {}
    for part in parts:
        for tree, tensors in part.items():
            whole.setdefault(tree, {}).update(tensors)
    return {tree: _ordered(tensors, names) for tree, tensors in whole.items()}


def _ordered(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return a tree in the model's order, and behind it what is not called after parameters."""
    known = [name for name in names if name in tensors]
    return {name: tensors[name] for name in (*known, *sorted(tensors.keys() - set(known)))}
