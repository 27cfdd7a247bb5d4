"""Which numbers of a tensor share a range: its heads, or chunks of its channels.

    (B, H, N, D)     attention: dimension 1, the heads
    (N, C, H, W)     images: dimension 1 as well, the channels
    (B*H, N, D)      attention as batched products flatten it: the heads, where the batch says how many
    (B, N, C), (B, C), (B*N, C)   tokens: the last dimension, the channels

Source: Mesa, arXiv:2111.11124, section 3.2 ("head-wise" and group-wise quantisation of hidden channels). Deviation:
an image's channels are chunks of consecutive ones too, not the tensor as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Asked = int | Literal["heads", "channels"]
"""At most so many groups; as many as the layer has heads; or one for each channel."""


class Groups(NamedTuple):
    """How one tensor is cut.

    Args:
        view: the shape that it is looked at in. dim: of that, the dimension that groups cut. number: of groups, each a
            stretch of consecutive places of that dimension; sizes differ by one at most.
    """

    view: tuple[int, ...]
    dim: int
    number: int

    def lengths(self) -> list[int]:
        """Return how many places of the dimension each group has."""
        size, number = self.view[self.dim], self.number
        return [size // number + (group < size % number) for group in range(number)]

    def spread(self, values: Tensor) -> Tensor:
        """Return a number a group as one a place, so that it broadcasts against the view.

        Shapes: values `[number]`; result all ones but `view[dim]`.
        """
        size = self.view[self.dim]
        if self.number == 1:
            return values.view([1] * len(self.view))
        if self.number != size:
            values = values.index_select(0, _group_of(size, self.number, values.device))
        return values.view([size if place == self.dim else 1 for place in range(len(self.view))])


@lru_cache(maxsize=256)
def _group_of(size: int, number: int, device: torch.device) -> Tensor:
    """Return the group of each place of a dimension."""
    whole, more = divmod(size, number)
    lengths = torch.tensor([whole + (group < more) for group in range(number)])
    return torch.arange(number).repeat_interleave(lengths).to(device)


def groups_of(shape: Sequence[int], asked: Asked, *, batch: int | None = None, heads: int | None = None) -> Groups:
    """Return how a tensor of at least two dimensions is cut.

    Args:
        asked: see `Asked`. batch: examples of the layer's input, by which `(B*H, N, D)` is known. heads: of the layer;
            None where it has none, and `heads` is then one group.

    Raises:
        ValueError: for a tensor of fewer dimensions, or fewer than one group.
    """
    view = tuple(shape)
    if len(view) < 2 or (isinstance(asked, int) and asked < 1):
        raise ValueError(f"a tensor of shape {view} cannot be cut into {asked} groups")
    if len(view) == 3 and batch and view[0] != batch and view[0] % batch == 0:
        view = (batch, view[0] // batch, *view[1:])
    dim = 1 if len(view) > 3 else len(view) - 1
    limit = asked if isinstance(asked, int) else view[dim] if asked == "channels" else heads or 1
    return Groups(view, dim, max(1, min(limit, view[dim])))
