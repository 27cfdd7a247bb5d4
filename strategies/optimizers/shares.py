"""Who moves which parameters, where several ranks hold the same ones and each keeps the optimizer's memory of a share.

Source: ZeRO stage 1, Rajbhandari et al. 2020 (arXiv:1910.02054), section 5.1. Deviation: whole parameters are shared
out, not equal runs of their elements, so the largest may leave shares uneven; in return no tensor is cut, and an
optimizer that needs norms of whole tensors needs nothing more.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping


def owners(sizes: Mapping[str, int], num_ranks: int) -> dict[str, int]:
    """Return for each parameter the rank that moves it: the largest first, each to whoever has least.

    Args:
        sizes: of the parameters, by name; what is said of equals depends on their order.

    Raises:
        ValueError: when there are no ranks.

    Source: Graham 1969, longest processing time first: the largest share is at most 4/3 of the best one.
    """
    if num_ranks < 1:
        raise ValueError(f"expected at least 1 rank, got {num_ranks}")
    loads = [(0, rank) for rank in range(num_ranks)]
    found = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        load, rank = heapq.heappop(loads)
        found[name] = rank
        heapq.heappush(loads, (load + sizes[name], rank))
    return found


def largest(sizes: Mapping[str, int], num_ranks: int) -> int:
    """Return the size of the largest share."""
    loads = [0] * num_ranks
    for name, rank in owners(sizes, num_ranks).items():
        loads[rank] += sizes[name]
    return max(loads)
