"""The rows of the codecs' contract: every codec, every sensible chain, and a tree with all that may occur."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Entries = list[dict[str, Any]]


def row(*names: str | dict[str, Any]) -> Entries:
    return [{"name": name} if isinstance(name, str) else name for name in names]


EXACT: dict[str, Entries] = {"dense": [], "zstd": row("zstd"), "top-k of all": [{"name": "top-k", "keep": 1.0}]}
UNBIASED: dict[str, Entries] = {
    "random-k": [{"name": "random-k", "keep": 0.25}],
    "qsgd": [{"name": "qsgd", "levels": 4, "bucket": 64}],
    "qsgd max": [{"name": "qsgd", "levels": 1, "bucket": 50, "norm": "max"}],
    "terngrad": row("terngrad"),
    "fp16 stochastic": [{"name": "fp16", "stochastic": True}],
    "bf16 stochastic": [{"name": "bf16", "stochastic": True}],
    "int8 stochastic": [{"name": "int8", "stochastic": True}],
    "random-k, qsgd": [{"name": "random-k", "keep": 0.5}, {"name": "qsgd", "levels": 8, "bucket": 32}],
    "random-k, terngrad, zstd": row({"name": "random-k", "keep": 0.5}, "terngrad", "zstd"),
}
STABLE: dict[str, Entries] = {
    "fp16": row("fp16"),
    "bf16": row("bf16"),
    "signsgd": row("signsgd"),
    "top-k": [{"name": "top-k", "keep": 0.1}],
    "top-k of the tree": [{"name": "top-k", "keep": 0.1, "scope": "tree"}],
    "top-k, bf16": row({"name": "top-k", "keep": 0.1}, "bf16"),
    **{
        f"fedzip {encoding}": [{"name": "fedzip", "keep": 0.2, "encoding": encoding}]
        for encoding in ("huffman", "positions", "differences", "entropy")
    },
    "fedzip pinned": [{"name": "fedzip", "keep": 0.05, "pin_zero": True, "encoding": "entropy", "init": "quantile"}],
    "fedzip, zstd": row("fedzip", "zstd"),
}
OTHERS: dict[str, Entries] = {
    "int8": row("int8"),
    "int8, zstd": row("int8", "zstd"),
    "powersgd": row("powersgd"),
    "powersgd, fp16": row({"name": "powersgd", "rank": 1}, "fp16"),
    "random-k unscaled": [{"name": "random-k", "keep": 0.1, "unbiased": False}],
    "top-k, int8, zstd": row({"name": "top-k", "keep": 0.1}, "int8", "zstd"),
    "top-k, signsgd": row({"name": "top-k", "keep": 0.1}, "signsgd"),
    "top-k, qsgd, zstd": row({"name": "top-k", "keep": 0.3}, "qsgd", "zstd"),
    "powersgd, int8": row("powersgd", "int8"),
    "fedzip 16 clusters": [{"name": "fedzip", "keep": 1.0, "clusters": 16, "encoding": "huffman"}],
    "fedzip of the tree": [{"name": "fedzip", "keep": 0.1, "scope": "tree", "encoding": "differences"}],
    "fedzip entropy of the tree": [
        {"name": "fedzip", "keep": 0.1, "clusters": 5, "scope": "tree", "encoding": "entropy", "skip": None}
    ],
}
ROWS = {**EXACT, **UNBIASED, **STABLE, **OTHERS}


def everything(seed: int = 0) -> dict[str, Tensor]:
    """Every dtype, no dimension, no element, constants, ties, one element, tiny and huge numbers."""
    rng = torch.Generator().manual_seed(seed)
    heavy = torch.randn(40, 60, generator=rng) ** 3
    return {
        "conv.weight": torch.randn(6, 4, 3, 3, generator=rng),
        "fc.weight": heavy,
        "fc.bias": torch.randn(40, generator=rng),
        "double": torch.randn(5, 7, generator=rng, dtype=torch.float64),
        "half": torch.randn(33, generator=rng).to(torch.float16),
        "brain": torch.randn(3, 11, generator=rng).to(torch.bfloat16),
        "scalar": torch.tensor(-2.5),
        "one": torch.tensor([3.0]),
        "none": torch.zeros(0, 4),
        "zeros": torch.zeros(17),
        "constant": torch.full((4, 5), 0.1),
        "two values": torch.tensor([1.0, -1.0] * 9),
        "sizes": torch.tensor([0.0, -0.0, 1e-45, -1e-38, 3e4, -1.5]),
        "running.num_batches_tracked": torch.tensor(2**62 + 1),
        "ints": torch.arange(-3, 3, dtype=torch.int32),
        "small": torch.tensor([[-5, 7]], dtype=torch.int8),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "naïve/名": torch.randn(2, 2, generator=rng),
    }
