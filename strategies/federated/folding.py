"""Adding up many updates in an order that does not depend on who adds them.

Floating-point addition is not associative, so a sum has the same bits everywhere only when its order is fixed.
A cohort, sorted by client id, is cut into blocks of a fixed size; each block is folded left to right by
whichever worker has time; block sums are then added in block order:

    cohort   3 7 | 12 18 | 21 40 | 44          block size 2
    workers  (3+7)  (12+18)  (21+40)  (44)      any worker, any time
    server   (((3+7) + (12+18)) + (21+40)) + 44

The server holds one tree per block at most, and a worker one: memory grows with neither cohort nor population.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from strategies.base import Contribution, Fold

NUM_BLOCKS = 16
"""Blocks of a large cohort. Sixteen keep up to eight workers evenly busy, and bound the server's memory."""


def block_size_for(num_clients: int) -> int:
    """Return the default block size of a cohort: blocks of two for small cohorts, never more than `NUM_BLOCKS`."""
    return max(min(2, num_clients), -(-num_clients // NUM_BLOCKS))


def blocks(cohort: Iterable[int], block_size: int) -> list[tuple[int, ...]]:
    """Cut a cohort, sorted by client id, into consecutive blocks. The last block may be shorter.

    Raises:
        ValueError: when `block_size` is below 1 or a client appears twice.
    """
    ids = sorted(cohort)
    if block_size < 1:
        raise ValueError(f"block size must be at least 1, got {block_size}")
    if len(set(ids)) != len(ids):
        raise ValueError(f"a cohort names each client once, got {ids}")
    return [tuple(ids[start : start + block_size]) for start in range(0, len(ids), block_size)]


@torch.no_grad()
def fold(contributions: Iterable[Contribution]) -> Fold | None:
    """Fold contributions left to right; `None` when there are none. The contributions are not changed."""
    total: dict[str, torch.Tensor] = {}
    weight, count = 0.0, 0
    for contribution in contributions:
        if not total:
            total = {name: tensor * contribution.weight for name, tensor in contribution.tree.items()}
        else:
            torch._foreach_add_(
                list(total.values()), [contribution.tree[name] for name in total], alpha=contribution.weight
            )
        weight += contribution.weight
        count += 1
    return Fold(total, weight, count) if count else None


@torch.no_grad()
def add(folds: Sequence[Fold]) -> Fold:
    """Add folds of disjoint clients left to right. The first fold's tensors are overwritten.

    Raises:
        ValueError: when there are no folds, or they hold different names.
    """
    if not folds:
        raise ValueError("cannot add zero folds: no client contributed")
    total, weight, count = folds[0]
    for other in folds[1:]:
        if other.total.keys() != total.keys():
            raise ValueError(f"folds differ in their tensors: {sorted(other.total.keys() ^ total.keys())}")
        torch._foreach_add_(list(total.values()), [other.total[name] for name in total])
        weight += other.weight
        count += other.num_clients
    return Fold(total, weight, count)
