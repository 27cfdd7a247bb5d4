"""Dropout that does not spend more time on drawing masks than a layer on its arithmetic.

torch draws a CPU's masks number by number, 16 ns each, which in a graph convolution of width 100 was nearly half of all
time. Here each mask takes 16 bits of a 64-bit word of torch's own generator: a seventh of the time for the whole layer.
Masks are compared and turned into floats as whole numbers: torch makes and reads bools five to nine times as slowly.
The probability is therefore a multiple of 1/65536, and what is kept is divided by exactly that, so that means are
exact. Masks depend on the state of torch's default generator as those of `nn.Dropout` do, and are others than those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """As `nn.Dropout`; on another device than a CPU, and in place, it is that.

    Shapes: any, and the same.

    Source: Srivastava et al. 2014, JMLR 15, section 4, scaled in training.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with numbers dropped, in training."""
        if not self.training or self.p == 0 or self.inplace or x.device.type != "cpu" or not x.is_floating_point():
            return super().forward(x)
        return _Drop.apply(x, min(round(self.p * _LEVELS), _LEVELS))  # type: ignore[no-any-return]


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        lanes = words.view(torch.int16)[: x.numel()].view(x.shape)
        kept = lanes.ge_(dropped - _LEVELS // 2) if dropped < _LEVELS else lanes.zero_()
        mask = kept.to(torch.uint8).view(torch.bool)  # 0 and 1
        ctx.save_for_backward(mask)  # through the hooks of whoever keeps masks as bits
        ctx.scale = _LEVELS / (_LEVELS - dropped) if dropped < _LEVELS else 0.0
        return _masked(x, mask, ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _masked(gradient, *ctx.saved_tensors, ctx.scale), None


def _masked(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    return mask.view(torch.uint8).to(x.dtype).mul_(scale).mul_(x)
