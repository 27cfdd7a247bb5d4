"""Between a module and its tree: what of a model travels, and how it is put back.

Parameters and floating-point buffers (BatchNorm's running statistics) travel, under their names in the module.
Integer buffers (BatchNorm's batch counter) stay where they are: an average of counters means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's own tensors that travel, by name; they share the module's memory."""
    named = {name: parameter.detach() for name, parameter in module.named_parameters()}
    named.update((name, buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point())
    return named


def everything(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer by name, in the module's order, those that do not travel included."""
    yield from ((name, parameter.detach()) for name, parameter in module.named_parameters())
    yield from module.named_buffers()


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's tree, in its own memory."""
    return {name: tensor.clone() for name, tensor in tensors(module).items()}


@torch.no_grad()
def load(module: nn.Module, tree: Mapping[str, Tensor]) -> None:
    """Copy a tree into the module.

    Raises:
        ValueError: when names or shapes differ, naming the first that does.
    """
    own = tensors(module)
    if own.keys() != tree.keys():
        raise ValueError(f"model and tree differ in their tensors: {sorted(own.keys() ^ tree.keys())[:5]}")
    for name, tensor in own.items():
        if tensor.shape != tree[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the tree's is {tuple(tree[name].shape)}")
    torch._foreach_copy_(list(own.values()), [tree[name] for name in own])
