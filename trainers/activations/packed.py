"""What is kept in place of a saved tensor: a view of a block in 8 bits, bits of a mask, a parameter, or itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from strategies import activations
from strategies.activations import Encoded
from trainers.activations.weights import Gathered


class Kept:
    """A block of memory in 8 bits, shared by all who saved it."""

    def __init__(self, encoded: Encoded, like: Tensor, key: str) -> None:
        self.key = key
        self._set(encoded, like)

    def _set(self, encoded: Encoded, like: Tensor) -> None:
        self.encoded = encoded
        self.offset, self.shape, self.stride = like.storage_offset(), like.shape, like.stride()
        self.dense = encoded.levels.stride() == self.stride and encoded.levels.numel() == extent(like)

    def replace(self, encoded: Encoded, like: Tensor, key: str) -> None:
        """Take another encoding of the same memory."""
        self.key = key
        self._set(encoded, like)

    @property
    def num_bytes(self) -> int:
        return self.encoded.num_bytes

    def covers(self, tensor: Tensor) -> bool:
        """Return whether a tensor of the same storage can be read from this."""
        start = tensor.storage_offset()
        if (start, tensor.shape, tensor.stride()) == (self.offset, self.shape, self.stride):
            return True
        return self.dense and start >= self.offset and start + extent(tensor) <= self.offset + self.shape.numel()

    def read(self, offset: int, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
        value = activations.decode(self.encoded)
        if (offset, shape, stride) == (self.offset, self.shape, self.stride):
            return value
        return value.as_strided(shape, stride, offset - self.offset)


class Held(NamedTuple):
    """A saved tensor, as a view of what is kept."""

    kept: Kept
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def block(self) -> object:
        """What the bytes belong to."""
        return self.kept

    @property
    def num_bytes(self) -> int:
        return self.kept.num_bytes

    def get(self) -> Tensor:
        """Return the tensor, decoded."""
        return self.kept.read(self.offset, self.shape, self.stride)


class Mask(NamedTuple):
    """A saved mask."""

    bits: Tensor
    shape: torch.Size

    @property
    def block(self) -> object:
        return self.bits

    @property
    def num_bytes(self) -> int:
        return self.bits.numel()

    def get(self) -> Tensor:
        return activations.from_bits(self.bits, self.shape)


class Laid(NamedTuple):
    """A saved tensor of which this process has a piece.

    Args:
        packed: what is kept of the piece. laid: see `Piece`.
    """

    packed: Tensor | Held | Mask | Gathered
    laid: Callable[[Tensor], Tensor]

    def get(self) -> Tensor:
        return self.laid(unpack(self.packed))


class Piece(NamedTuple):
    """What this process has of a tensor that lies on several.

    Args:
        local: its numbers here. name: which piece it is, the same wherever the same numbers are; "" for all of them.
        laid: returns the tensor that such a piece is of; None for the piece itself.
    """

    local: Tensor
    name: str = ""
    laid: Callable[[Tensor], Tensor] | None = None


Packed = Tensor | Held | Mask | Gathered


def unpack(packed: Packed | Laid) -> Tensor:
    """Return what was packed."""
    return packed if isinstance(packed, Tensor) else packed.get()


def extent(tensor: Tensor) -> int:
    """Return how many places of its storage lie between a tensor's first number and its last."""
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
