"""Adding up many updates in an order that does not depend on who adds them.

Floating-point addition is not associative, so a sum has the same bits everywhere only when its order is fixed.
The participations of a step, sorted by client, are cut into blocks; a block is folded left to right; block sums are
added pairwise, as a binary tree. A worker may be given any *span*, the blocks below one node of that tree:

    clients  3 7 | 12 18 | 21 40 | 44       blocks of two
    nodes    a     b       c       d        left to right within a block
             a + b         c + d            a span of two blocks, done by one worker
             (a + b)   +   (c + d)          by the server

Large spans mean few sums to send, small ones even work; neither moves a bit. A sum of n terms also rounds log n times
instead of n times. A worker holds log n trees at most, and the server those of the spans that wait for their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from strategies.base import Contribution, Fold

NUM_BLOCKS = 16
"""Blocks of a cohort of 32 or more. Sixteen keep up to eight workers evenly busy."""


def blocks(clients: Sequence[int], block_size: int | None = None, num_blocks: int = NUM_BLOCKS) -> list[range]:
    """Cut participations, sorted by client, into consecutive blocks that no client straddles.

    Args:
        clients: the client of each participation, ascending; one that took part twice is there twice.
        block_size: participations of a block. None: `num_blocks` blocks of nearly equal size, none below two.

    Returns:
        The places in `clients` of each block, none empty.

    Raises:
        ValueError: when the clients are not sorted, or a size is below 1.
    """
    num = len(clients)
    if not num:
        return []
    if any(clients[place] < clients[place - 1] for place in range(1, num)):
        raise ValueError(f"clients are cut in ascending order, got {list(clients)}")
    if (block_size is not None and block_size < 1) or num_blocks < 1:
        raise ValueError(f"block size and number of blocks must be at least 1, got {block_size} and {num_blocks}")
    count = max(1, min(num_blocks, num // 2))
    starts = range(0, num, block_size) if block_size else [num * place // count for place in range(count)]
    cuts = [start for start in starts if start == 0 or clients[start] != clients[start - 1]]
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], num], strict=True) if stop > start]


def spans(num_blocks: int, num_workers: int, *, even: bool = False) -> list[range]:
    """Divide blocks among workers: aligned spans of 1, 2, 4, ... blocks, the large ones first.

    Each span is about a worker's share of what is left, so that few sums travel and the last ones end together
    (guided self-scheduling; Polychronopoulos and Kuck 1987, IEEE Trans. Computers 36(12)). How blocks are divided
    does not change any bit.

    Args:
        even: one span a worker where the number of blocks allows; for calls so short that their number is what counts.
    """
    found, start = [], 0
    share = -(-num_blocks // max(1, num_workers))
    while start < num_blocks:
        left = num_blocks - start
        wanted = share if even else max(1, left // max(1, num_workers))
        size = 1 << (min(wanted, left).bit_length() - 1)
        size = min(size, start & -start) if start else size
        found.append(range(start, start + size))
        start += size
    return found


class Summation:
    """The sum of consecutive spans along the binary tree. `push` them in order, then ask for the `total`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Fold | None]] = []

    def push(self, part: Fold | None, num_blocks: int = 1) -> None:
        """Take in the sum of the next span, `None` when nobody in it contributed. Its tensors may be overwritten.

        Args:
            num_blocks: of the span, a power of two.
        """
        size = num_blocks
        while self._waiting and self._waiting[-1][0] == size:
            part, size = add(self._waiting.pop()[1], part), 2 * size
        self._waiting.append((size, part))

    def total(self) -> Fold | None:
        """Return the sum of everything pushed; `None` when nobody contributed."""
        total: Fold | None = None
        while self._waiting:
            total = add(self._waiting.pop()[1], total)
        return total


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
def add(left: Fold | None, right: Fold | None) -> Fold | None:
    """Add the folds of disjoint clients, `None` being the fold of nobody. The tensors of `left` are overwritten.

    Raises:
        ValueError: when they hold different names.
    """
    if left is None or right is None:
        return left or right
    if left.total.keys() != right.total.keys():
        raise ValueError(f"folds differ in their tensors: {sorted(left.total.keys() ^ right.total.keys())}")
    torch._foreach_add_(list(left.total.values()), [right.total[name] for name in left.total])
    return Fold(left.total, left.weight + right.weight, left.num_clients + right.num_clients)
