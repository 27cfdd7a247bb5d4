"""Pieces of tensors on a mesh: what a rank holds of one, and the name by which ranks with the same piece know it.

Activations in 8 bits are rounded piece by piece, and nothing is sent for it. Ranks that hold the same numbers must
round them alike, or copied weights, whose gradients come of them, would drift apart. So rounding is drawn, and ranges
are remembered, by the piece and not by the rank:

    0/3           all of the tensor at place 3, a copy on every rank
    0/3:1of2,*    on a mesh of two axes the second of two pieces along the first, a copy along the other

Ranges are kept in checkpoints under these names. A run that goes on with another layout takes those whose piece is one
of its own, and the others begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor.placement_types import Placement

from trainers.activations import Piece

_COPY = "*"


class Pieces:
    """The pieces that one rank holds.

    Args:
        mesh: None in one process, which holds all of everything.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        coordinate = None if mesh is None else mesh.get_coordinate()
        self._sizes = () if mesh is None else tuple(mesh.size(axis) for axis in range(mesh.ndim))
        self._own = [f"{at}of{size}" for at, size in zip(coordinate or (), self._sizes, strict=True)]
        self._first = [at == 0 for at in coordinate or ()]

    def of(self, tensor: Tensor) -> Piece:
        """Return what this rank holds of a tensor."""
        if not isinstance(tensor, DTensor):
            return Piece(tensor)
        with torch.no_grad():
            local = arrived(tensor.to_local())
        return Piece(local, self._name(tensor.placements), partial(_laid, spec=tensor._spec))

    def has(self, place: str) -> bool:
        """Return whether a place in a state is of a piece that this rank holds."""
        entries = self._entries(place)
        return len(entries) == len(self._own) and all(
            entry in (_COPY, own) for entry, own in zip(entries, self._own, strict=True)
        )

    def tells(self, place: str) -> bool:
        """Return whether it is for this rank to save a place: of those that hold the same piece, the first does."""
        copied = [entry == _COPY for entry in self._entries(place)]
        return self.has(place) and all(first for copy, first in zip(copied, self._first, strict=True) if copy)

    def _name(self, placements: Sequence[Placement]) -> str:
        entries = [
            _COPY if placement.is_replicate() or size == 1 else own
            for placement, size, own in zip(placements, self._sizes, self._own, strict=True)
        ]
        return "" if all(entry == _COPY for entry in entries) else f":{','.join(entries)}"

    def _entries(self, place: str) -> list[str]:
        _, _, name = place.partition(":")
        return name.split(",") if name else [_COPY] * len(self._own)


def _laid(local: Tensor, spec: DTensorSpec) -> DTensor:
    """Return the tensor of which this is a piece.

    Not by `from_local`: it reads splits in parts as the order in which axes split, and later operators would gather.
    """
    return DTensor(local, spec, requires_grad=False)


def arrived(tensor: Tensor) -> Tensor:
    """Return what a collective made once it is there."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return tensor.wait() if isinstance(tensor, AsyncCollectiveTensor) else tensor
