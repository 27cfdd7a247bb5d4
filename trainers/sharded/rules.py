"""Operators that torch's DTensor has no rule for and models here use: they are told how they divide.

Attention of a CPU is one operator there, and divides by examples and by heads as that of other devices does. The
registration is global to the process, as torch has it, and done once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding


@cache
def register() -> None:
    """Tell DTensor the rules."""
    aten = torch.ops.aten
    forward = aten._scaled_dot_product_flash_attention_for_cpu.default
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default

    @register_sharding(forward)
    def attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> Any:
        """query, key, value [batch, heads, length, width] -> output alike, and log-sums [batch, heads, length]."""
        plain = [None] * len(rest)
        mask = named.get("attn_mask")
        return [
            ([at, sums], [at, at, at, *plain])
            for at, sums in ((Replicate(), Replicate()), (Shard(0), Shard(0)), (Shard(1), Shard(1)))
            if mask is None or at == Replicate()
        ]

    @register_sharding(backward)
    def attention_backward(
        grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, *rest: Any, **named: Any
    ) -> Any:
        plain = [None] * len(rest)
        return [
            ([at, at, at], [at, at, at, at, at, of_sums, *plain])
            for at, of_sums in ((Replicate(), Replicate()), (Shard(0), Shard(0)), (Shard(1), Shard(1)))
        ]
