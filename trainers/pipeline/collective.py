"""Sums over the ranks of a group, and what they have end to end, that a rank may start and collect later.

In one process the ranks take turns, so a sum is there when all have started it; between processes it is an all-reduce
of two ranks or, for more, one in two halves: each rank adds up a share of the numbers, and sends round its sums. Both
add in the order of the ranks or, for two, in either order, which is the same. So a number's sum does not depend on
where in a tensor it is, which gloo's own all-reduce of more ranks does not promise; nccl's is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Pending(NamedTuple):
    """A sum under way: whether `result` would have to wait for another rank of this process, and the sum."""

    ready: Callable[[], bool]
    result: Callable[[], Tensor]


class Collective(Protocol):
    def sum(self, group: str, tensor: Tensor) -> Pending:
        """Begin to add up `tensor` over the group's ranks, which all begin the same sums in the same order.

        It is no longer the caller's: the sum may be written into it.
        """
        ...

    def gather(self, group: str, tensor: Tensor, sizes: Sequence[int]) -> Pending:
        """Begin to put the ranks' 1-D tensors end to end, in their order; `sizes` are all ranks'."""
        ...


class LocalCollective:
    """Groups of ranks that are all in this process.

    Args:
        sizes: ranks of each group. board: shared by the ranks. member: this one.
    """

    def __init__(self, sizes: Mapping[str, int], board: dict[tuple[str, int], dict[int, Tensor]], member: int) -> None:
        self._sizes, self._board, self._member = sizes, board, member
        self._count: dict[str, int] = {}

    def sum(self, group: str, tensor: Tensor) -> Pending:
        return self._meet(group, tensor, lambda tensors: reduce(torch.add, tensors))

    def gather(self, group: str, tensor: Tensor, sizes: Sequence[int]) -> Pending:
        return self._meet(group, tensor, torch.cat)

    def _meet(self, group: str, tensor: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Pending:
        number = self._count[group] = self._count.get(group, 0) + 1
        given = self._board.setdefault((group, number), {})
        given[self._member] = tensor.clone()
        size = self._sizes[group]
        if len(given) == size:  # all know it
            del self._board[group, number]
        return Pending(lambda: len(given) == size, lambda: combine([given[member] for member in sorted(given)]))


class GroupCollective:
    """Groups of torch.distributed, by name.

    Args:
        device: where the backend can add; what is given elsewhere goes there and back.
    """

    def __init__(self, groups: Mapping[str, dist.ProcessGroup | None], device: torch.device) -> None:
        self._groups, self._device = groups, device

    def sum(self, group: str, tensor: Tensor) -> Pending:
        members = self._groups[group]
        there = tensor.to(self._device)
        if dist.get_world_size(members) > 2 and dist.get_backend(members) == "gloo":
            return _sum_by_shares(there, members)
        work = dist.all_reduce(there, group=members, async_op=True)

        def result() -> Tensor:
            work.wait()
            return there.to(tensor.device)

        return Pending(lambda: True, result)

    def gather(self, group: str, tensor: Tensor, sizes: Sequence[int]) -> Pending:
        members = self._groups[group]
        own = dist.get_rank(members)
        parts = [torch.empty(size, dtype=tensor.dtype, device=self._device) for size in sizes]
        parts[own].copy_(tensor)
        work = [
            dist.broadcast(part, group=members, group_src=member, async_op=True)
            for member, part in enumerate(parts)
            if len(part)
        ]

        def result() -> Tensor:
            for each in work:
                each.wait()
            return torch.cat(parts).to(tensor.device)

        return Pending(lambda: True, result)


def group_of(rank: int, parts: Iterable[Sequence[int]]) -> dist.ProcessGroup | None:
    """Return the group of those ranks that `rank` is among, None where it is alone; every rank makes all groups.

    Args:
        parts: all ranks of the world, each in one of them; the same on every rank, in the same order.
    """
    made = [(ranks, dist.new_group(list(ranks)) if len(ranks) > 1 else None) for ranks in parts]
    return next(group for ranks, group in made if rank in ranks)


def _sum_by_shares(tensor: Tensor, members: dist.ProcessGroup | None) -> Pending:
    """Begin to add up in the order of the ranks, each of which adds a share of the numbers."""
    size = dist.get_world_size(members)
    share = -(-tensor.numel() // size)
    given = torch.zeros(size * share, dtype=tensor.dtype)
    given[: tensor.numel()] = tensor.flatten()
    came = torch.empty_like(given)
    work = dist.all_to_all_single(came, given, group=members, async_op=True)

    def result() -> Tensor:
        work.wait()
        own = reduce(torch.add, came.split(share)) if share else came
        dist.all_gather_into_tensor(given, own, group=members)
        return given[: tensor.numel()].view(tensor.shape)

    return Pending(lambda: True, result)
