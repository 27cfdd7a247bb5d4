"""Clients with skewed class mixtures and sizes, tuned by one number: the usual benchmark of heterogeneity.

Two rules carry this name. Hsu et al. draw a class mixture for each client, all clients being of one size. The one
here draws, for each class, how that class is shared out among the clients, so that sizes are skewed too; it is
what most later papers report. What is left out: the capping of clients that are already large (Li et al.'s code).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.partition.base import Integers, Labels, Partition, from_assignment, require_examples

LARGEST_ALPHA = 1e12
"""Above this, shares are equal to a millionth, and sums of larger concentrations overflow."""


def dirichlet(labels: Labels, num_clients: int, alpha: float, rng: np.random.Generator, min_size: int = 1) -> Partition:
    """Share out every class among the clients in proportions drawn from a symmetric Dirichlet distribution.

    Args:
        alpha: concentration. Small: a class sits with few clients; large: every client mirrors the whole.
        min_size: clients that drew fewer examples receive some of the largest clients' (`_fill_up`).

    Raises:
        ValueError: when `alpha` is not above 0, or there are too few examples for `min_size`.

    Shapes: `labels [num_examples]`.

    Source: for each class k, p_k ~ Dir_N(alpha) and client j receives a share p_kj of its examples: Yurochkin et
    al. 2019, arXiv:1905.12022, section 4; Li et al. 2022, arXiv:2102.02079, section IV. The idea, with the
    mixture drawn per client: Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3. Deviations: shares are rounded
    from a random start, so that the rounding favours no client; and where Li et al. redraw everything until the
    smallest client is large enough, which may never end, examples move from the largest clients to the small.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    require_examples("dirichlet", len(labels), num_clients, min_size)
    client_of = np.empty(len(labels), np.int64)
    clients = np.arange(num_clients)
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    ends = np.append(np.flatnonzero(np.diff(labels[by_label])) + 1, len(labels))
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        shares = rng.dirichlet(np.full(num_clients, min(alpha, LARGEST_ALPHA)))
        client_of[by_label[start:end]] = np.repeat(clients, _round(shares, int(end - start), rng))
    if min_size > 0:
        _fill_up(client_of, num_clients, min_size, rng)
    return from_assignment(client_of, num_clients)


def _round(shares: NDArray[np.float64], num_examples: int, rng: np.random.Generator) -> Integers:
    """Return whole numbers that sum to `num_examples`, each within one of its share and fair on average."""
    cumulative = np.cumsum(shares)
    edges = np.floor(cumulative * (num_examples / cumulative[-1]) + rng.random()).astype(np.int64)
    edges[-1] = num_examples
    counts: Integers = np.diff(np.minimum(edges, num_examples), prepend=0)
    return counts


def _fill_up(client_of: Integers, num_clients: int, min_size: int, rng: np.random.Generator) -> None:
    """Move randomly chosen examples from the largest clients to those below `min_size`, in place.

    The largest clients are lowered to a common level, the highest one that frees enough examples; it is never
    below `min_size`, so nobody becomes too small.
    """
    sizes = np.bincount(client_of, minlength=num_clients)
    missing = np.maximum(min_size - sizes, 0)
    needed = int(missing.sum())
    if needed == 0:
        return
    low, high = min_size, int(sizes.max())
    while low < high:
        level = (low + high + 1) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= needed else (low, level - 1)
    given = np.maximum(sizes - low, 0)
    given[np.flatnonzero(given)[: int(given.sum()) - needed]] -= 1
    donors = np.flatnonzero(given)
    is_donor = np.zeros(num_clients, bool)
    is_donor[donors] = True
    rows = np.flatnonzero(is_donor[client_of])
    rows = rows[np.lexsort((rng.random(len(rows)), client_of[rows]))]
    first = np.repeat(np.cumsum(sizes[donors]) - sizes[donors], given[donors])
    nth = np.arange(needed) - np.repeat(np.cumsum(given[donors]) - given[donors], given[donors])
    client_of[rows[first + nth]] = np.repeat(np.arange(num_clients), missing)
