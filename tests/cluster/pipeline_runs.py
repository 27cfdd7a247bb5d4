"""The pipeline run that tests of gangs share, and what it means that two runs are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def config(root: Path, *, cluster: dict[str, Any] | None = None, **strategy: Any) -> dict[str, Any]:
    """A pipeline of a CNN with dropout and BatchNorm-free layers, uneven micro-batches and a clipped gradient."""
    return {
        "name": "pipe",
        "seed": 5,
        "data": {"name": "digits"},
        "model": {"name": "cnn", "filters": [4, 8], "dense": 16, "dropout": 0.25},
        "strategy": {
            "kind": "pipeline", "stages": 2, "microbatches": 5, "steps": 12, "batch_size": 33, "clip_norm": 0.5,
            "partition": "parameters", "optimizer": {"name": "adamw", "lr": 0.01}, **strategy,
        },
        "cluster": {"resources_per_worker": {"CPU": 0.5}, **(cluster or {"workers": 0})},
        "tracking": {"enabled": False},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 6, "batch_size": 100},
        "storage": {"root": str(root)},
    }  # fmt: skip


def same(a: Any, b: Any) -> None:
    left, right = a.weights(), b.weights()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    figures = [
        [
            (row["step"], row["name"], row["value"])
            for row in run.history().to_pylist()
            if row["scope"] in ("train", "test")
        ]
        for run in (a, b)
    ]
    assert figures[0] == figures[1]
    assert len(figures[0]) > 15
