"""Pieces of named tensors that lie one behind another in a flat one, which is how ZeRO hands parameters out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Piece(NamedTuple):
    """A stretch of a named tensor, and where a flat tensor holds it.

    Args:
        name, shape: of the whole tensor. start: of the stretch, in that tensor flattened.
        offset: of the stretch, in the flat tensor. length: of the stretch, in elements.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    offset: int
    length: int


def check(pieces: Mapping[Tensor, Sequence[Piece]], names: Sequence[str]) -> None:
    """Hold pieces against the flat tensors that have them.

    Raises:
        ValueError: when a piece reaches beyond either tensor, lies over another one, or has a name not among `names`.
    """
    known = set(names)
    for flat, own in pieces.items():
        end = 0
        for piece in sorted(own, key=lambda piece: piece.offset):
            size = 1
            for extent in piece.shape:
                size *= extent
            if piece.name not in known:
                raise ValueError(f"piece of {piece.name!r}, which is not among the {len(known)} names given")
            if piece.start < 0 or piece.length < 0 or piece.start + piece.length > size:
                raise ValueError(f"{piece} reaches beyond the {size} elements of {piece.name}")
            if piece.offset < end or piece.offset + piece.length > flat.numel():
                raise ValueError(f"{piece} lies over another one or beyond the flat tensor's {flat.numel()} elements")
            end = piece.offset + piece.length
