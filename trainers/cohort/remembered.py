"""What is kept of a client between its participations, as one tree of bytes that travels with its work.

memory    what the server rule remembers of it (SCAFFOLD's c_i, the last update of AFA-CS)
residual  what its codec has left unsent so far (error feedback)
personal  its own values of the tensors that are not aggregated
best      those of its best model so far, with the accuracy that made it so
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from strategies.base import Tree
from trainers import wire

_NONE: Tree = MappingProxyType({})


class Remembered(NamedTuple):
    """One client's state; a slot that is empty is not written.

    Args:
        best_accuracy: on the examples that the client held out, of the model in `best`.
    """

    memory: Tree = _NONE
    residual: Tree = _NONE
    personal: Tree = _NONE
    best: Tree = _NONE
    best_accuracy: float = -1.0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to keep."""
        return not (self.memory or self.residual or self.personal or self.best)


_SLOTS = ("memory", "residual", "personal", "best")


def encode(state: Remembered) -> pa.Buffer:
    """Return the state as bytes."""
    flat: dict[str, Tensor] = {
        f"{slot}/{name}": tensor for slot in _SLOTS for name, tensor in getattr(state, slot).items()
    }
    if state.best:
        flat["/accuracy"] = torch.tensor(state.best_accuracy, dtype=torch.float64)
    return wire.encode(flat)


def decode(payload: pa.Buffer | None, device: torch.device) -> Remembered:
    """Return the state that `encode` wrote, on a device; the state of a new client for None."""
    if payload is None:
        return Remembered()
    return from_flat({name: tensor.to(device) for name, tensor in wire.decode(payload).items()})


def from_flat(flat: Mapping[str, Tensor]) -> Remembered:
    """Return the state whose tensors are named `slot/name`."""
    trees: dict[str, dict[str, Tensor]] = {slot: {} for slot in _SLOTS}
    accuracy = -1.0
    for key, tensor in flat.items():
        slot, name = key.split("/", 1)
        if slot:
            trees[slot][name] = tensor
        else:
            accuracy = float(tensor)
    return Remembered(**trees, best_accuracy=accuracy)
