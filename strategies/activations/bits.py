"""Masks of true and false as bits: an eighth of a byte each, and exact."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_bits(mask: Tensor) -> Tensor:
    """Return a mask's values, eight to a byte, the first in the highest bit.

    Shapes: mask any, bool; result `[ceil(n / 8)]`, uint8, on its device.
    """
    flat = mask.detach().reshape(-1)
    if flat.device.type == "cpu" and type(flat) is Tensor:  # a subclass may have no memory, as where bytes are counted
        return torch.from_numpy(np.packbits(flat.numpy()))
    lanes = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8, device=flat.device)
    lanes[: flat.numel()] = flat
    return (lanes.view(-1, 8) << _places(flat.device)).sum(1, dtype=torch.uint8)


def from_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return the mask of this shape that `to_bits` was given, contiguous."""
    if packed.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(packed.numpy(), count=shape.numel())).view(torch.bool).view(shape)
    return (packed[:, None] >> _places(packed.device) & 1).view(-1)[: shape.numel()].view(torch.bool).view(shape)


def _places(device: torch.device) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
