"""Work that several benchmarks share: data and models of fixed sizes, made up from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np


def images(clients: int, per_client: int, channels: int = 3, side: int = 32, classes: int = 10) -> dict[str, Any]:
    """Return random float32 images `[clients * per_client, channels, side, side]` with one pattern a class."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(classes, channels, side, side)).astype(np.float32)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(classes, size=count)
        noise = rng.normal(size=(count, channels, side, side)).astype(np.float32)
        return patterns[y] + 2 * noise, y

    train_x, train_y = sample(clients * per_client)
    test_x, test_y = sample(1000)
    return {
        "name": "benchmark-images", "train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y,
        "num_classes": classes,
    }  # fmt: skip
