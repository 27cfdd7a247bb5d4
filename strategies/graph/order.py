"""In which order an epoch processes the chunks."""

from __future__ import annotations

import numpy as np

from strategies.graph.structure import Integers
from strategies.seeds import generator


def chunk_order(seed: int, epoch: int, slots: int, shuffle: bool) -> Integers:
    """Return the slots in the order of one epoch, the same on every stage and way; int64 `[slots]`.

    Args:
        seed: the experiment's.
        shuffle: whether every epoch draws an order of its own, so that no chunk always sees the oldest embeddings of
            its neighbours; else they come as they are numbered.

    Source: GNNPipe (arXiv:2308.10087), training technique 1, chunk shuffling.
    """
    return generator(seed, "chunks", epoch).permutation(slots) if shuffle else np.arange(slots)
