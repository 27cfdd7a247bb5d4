"""A group of clients that was trained as one program, seen as single updates only where somebody looks at one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from strategies.base import Contribution, Fold
from strategies.federated.folding import fold
from trainers.batched import Group


class Row(Mapping[str, Tensor]):
    """One client's change in a group. A tensor is computed when it is asked for.

    A rule that passes the change on as it is, as FedAvg does, never asks; the group is then summed as a whole.
    """

    def __init__(self, group: Group, row: int, names: Sequence[str]) -> None:
        self._group, self._row, self._names = group, row, names

    def __getitem__(self, name: str) -> Tensor:
        return self._group.multiply_out()[name][self._row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fold_group(
    group: Group, rows: Sequence[Row], contributions: Sequence[Contribution], kept: Sequence[int]
) -> Fold | None:
    """Fold a group's contributions.

    Args:
        rows: each client's change. contributions: of the clients `kept`, in their order.
    """
    if not contributions:
        return None
    plain = all(made.tree is rows[row] for made, row in zip(contributions, kept, strict=True))
    if not plain:
        return fold(contributions)
    weights = [0.0] * len(rows)
    for made, row in zip(contributions, kept, strict=True):
        weights[row] = made.weight
    names = list(rows[0])
    total = group.weighted_sum(weights, list(kept))
    return Fold({name: total[name] for name in names}, sum(weights), len(contributions))
