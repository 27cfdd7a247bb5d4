"""Examples that a client keeps from training, to judge its model by; the same ones in every round."""

from __future__ import annotations

import numpy as np

from strategies.seeds import generator


def num_held(num_examples: int, fraction: float) -> int:
    """Return how many of a client's examples are held out: at least one when it has two, never all of them."""
    if not fraction or num_examples < 2:
        return 0
    return min(num_examples - 1, max(1, round(num_examples * fraction)))


def split(rows: np.ndarray, fraction: float, run_seed: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows a client trains on, in their order, and those it holds out."""
    held = num_held(len(rows), fraction)
    if not held:
        return rows, rows[:0]
    mask = np.zeros(len(rows), dtype=bool)
    mask[generator(run_seed, "holdout", client).permutation(len(rows))[:held]] = True
    return rows[~mask], rows[mask]
