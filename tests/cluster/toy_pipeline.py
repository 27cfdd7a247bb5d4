"""A model whose third layer raises after some calls."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 12:
            raise RuntimeError("out of patience")
        return x


def breaks_after_a_while(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), 33), Breaks(), nn.Linear(33, num_classes))
