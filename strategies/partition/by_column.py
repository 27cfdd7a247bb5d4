"""Clients as the data has them: a column of a table, the speakers of a play. Nothing is drawn at random."""

from __future__ import annotations

import numpy as np

from strategies.partition.base import Integers, Labels, Partition


def by_column(client_of: Labels, min_size: int = 1) -> Partition:
    """Give every natural client its own examples, in the order of the clients' numbers.

    Clients with fewer than `min_size` examples are left out together with their examples, and those that remain
    are numbered anew; `natural_clients` tells who they were. This is the one partition that may not cover
    all examples.

    Raises:
        ValueError: when no client is large enough.

    Shapes: `client_of [num_examples]`, values at least 0.
    """
    if len(client_of) == 0:
        raise ValueError("the data has no examples to give to clients")
    if client_of.min() < 0:
        raise ValueError(f"natural clients are numbered from 0, got {client_of.min()}")
    sizes = np.bincount(client_of)
    kept = sizes >= max(min_size, 1)
    if not kept.any():
        raise ValueError(
            f"no client has {min_size} examples: the largest of {np.count_nonzero(sizes)} has {sizes.max()}; "
            f"lower min_size to at most {sizes.max()}"
        )
    order = np.argsort(client_of, kind="stable").astype(np.int64, copy=False)
    return Partition(order[kept[client_of[order]]], np.concatenate(([0], np.cumsum(sizes[kept]))).astype(np.int64))


def natural_clients(partition: Partition, client_of: Labels) -> Integers:
    """Return the natural number of every client of a partition made by `by_column`, to look up its name.

    Shapes: result `[num_clients]`.
    """
    return client_of[partition.order[partition.offsets[:-1]]].astype(np.int64)
