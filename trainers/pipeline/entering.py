"""Where the graph of a chunk begins, when what it begins with is not to be kept.

A leaf keeps its numbers for as long as autograd's graph is there, so as to put their gradient beside them. Here the
graph begins with a function of the carry, which remembers its shapes and puts the gradients down somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor


class Entry:
    """The tensors that one micro-batch of a chunk begins with."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._zeros: dict[str, Callable[[], Tensor]] = {}

    def enter(self, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors with the numbers of leaves, followed by autograd where those are."""
        return {name: self._entered(name, leaf) if leaf.requires_grad else leaf for name, leaf in leaves.items()}

    def gradients(self) -> dict[str, Tensor]:
        """Return what backward has found for each that is followed; zeros where it found nothing."""
        return {name: self._found[name] if name in self._found else zeros() for name, zeros in self._zeros.items()}

    def _entered(self, name: str, leaf: Tensor) -> Tensor:
        self._zeros[name] = partial(torch.zeros, leaf.shape, dtype=leaf.dtype, device=leaf.device)
        token = torch.empty(0, dtype=leaf.dtype, device=leaf.device, requires_grad=True)
        return _Entered.apply(token, leaf.detach(), self._found, name)  # type: ignore[no-any-return]


class _Entered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, x: Tensor, found: dict[str, Tensor], name: str) -> Tensor:
        ctx.found, ctx.name = found, name
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, None]:
        ctx.found[ctx.name] = gradient
        return None, None, None, None
