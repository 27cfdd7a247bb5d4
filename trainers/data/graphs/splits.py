"""Who is trained on, drawn by the seed: for graphs that come without a split of their own."""

from __future__ import annotations

import numpy as np

from strategies import seeds
from trainers.data.base import DataError


def draw(
    name: str, labelled: np.ndarray, train_fraction: float, val_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks for training, validation and test: fractions of the vertices with a label, the rest for testing.

    Raises:
        DataError: when one of the three would be empty.

    Shapes: `labelled [N]` bool; each mask `[N]` bool.
    """
    vertices = np.flatnonzero(labelled)
    cuts = np.round(np.cumsum([train_fraction, val_fraction]) * len(vertices)).astype(int)
    order = seeds.generator(seed, "graph/split").permutation(vertices)
    masks = tuple(np.zeros(len(labelled), bool) for _ in range(3))
    for what, mask, chosen in zip(("training", "validation", "test"), masks, np.split(order, cuts), strict=True):
        if not len(chosen):
            raise DataError(
                f"graph {name} has {len(vertices)} vertices with a label, of which none is for {what} with "
                f"train_fraction {train_fraction:g} and val_fraction {val_fraction:g}",
                "each takes some and leaves some for testing: data.train_fraction=0.6 and data.val_fraction=0.2",
            )
        mask[chosen] = True
    return masks[0], masks[1], masks[2]
