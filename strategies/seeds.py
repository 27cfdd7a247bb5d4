"""One seed for each purpose, as a function of what it is for and never of when it was drawn.

Every random choice of a run is drawn from `generator(run_seed, purpose, *indices)`, for instance
`generator(7, "cohort", round)` or `generator(7, "batches", round, client)`. Two workers, a restarted worker and
a resumed run therefore draw the same numbers, whatever ran before them.
"""

from __future__ import annotations

import hashlib

import numpy as np


def sequence(run_seed: int, purpose: str, *indices: int) -> np.random.SeedSequence:
    """Return the seed sequence of one purpose of one run.

    Args:
        run_seed: the experiment's `seed`, at least 0.
        purpose: a short fixed word such as `"cohort"`; different words give independent streams.
        indices: round, client and the like, each at least 0.

    Raises:
        ValueError: when the seed or an index is negative.

    Source: numpy.random.SeedSequence with a spawn key; the purpose enters as 32 bits of its SHA-256.
    """
    if run_seed < 0 or any(index < 0 for index in indices):
        raise ValueError(f"seeds and indices must be at least 0, got seed {run_seed} and indices {indices}")
    return np.random.SeedSequence(run_seed, spawn_key=(purpose_word(purpose), *indices))


def purpose_word(purpose: str) -> int:
    """Return the 32 bits that stand for a purpose in a spawn key."""
    return int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "little")


def generator(run_seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return a fresh numpy generator for one purpose; see `sequence` for the arguments."""
    return np.random.default_rng(sequence(run_seed, purpose, *indices))


def integer(run_seed: int, purpose: str, *indices: int) -> int:
    """Return one 63-bit seed for a library that wants an integer, such as torch."""
    return int(sequence(run_seed, purpose, *indices).generate_state(1, np.uint64)[0] >> 1)
