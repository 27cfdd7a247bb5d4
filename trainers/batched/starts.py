"""What the clients of a group start from: one tree for all where they received the same, else a stack."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from strategies.base import Tree


class Starts:
    """The starts of a group.

    Args:
        trees: one a client; clients that received the same tensor hold the same object. names: which to take.

    `trees[name]` is `[...]` when all clients start from one tensor, else `[C, ...]`.
    """

    def __init__(self, trees: Sequence[Tree], names: Sequence[str], device: torch.device) -> None:
        self._num_clients = len(trees)
        self.trees: dict[str, Tensor] = {}
        one = all(tree is trees[0] for tree in trees)
        for name in names:
            tensors = [tree[name] for tree in (trees[:1] if one else trees)]
            if all(tensor is tensors[0] for tensor in tensors):
                self.trees[name] = tensors[0].to(device)
            else:
                self.trees[name] = torch.stack(tensors).to(device)
        self._dims = {name: trees[0][name].dim() for name in names}

    def differs(self, name: str) -> bool:
        """Whether the clients start from different tensors of this name."""
        return self.trees[name].dim() > self._dims[name]

    def stacked(self, name: str, channels_last: bool = False) -> Tensor:
        """Return a copy for every client, `[C, ...]`; `channels_last` lays filters of 2-D convolutions so."""
        start = self.trees[name]
        dims = self._dims[name]
        shape = (self._num_clients, *start.shape[-dims:]) if dims else (self._num_clients,)
        if channels_last and dims == 4:
            clients, outputs, inputs, height, width = shape
            copy = start.new_empty(clients, outputs, height, width, inputs).permute(0, 1, 4, 2, 3)
        else:
            copy = start.new_empty(shape)
        return copy.copy_(start)
