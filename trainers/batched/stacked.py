"""What a block of clients comes to: their changes of the model, stacked or as unfinished products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Product(NamedTuple):
    """The change of a weight matrix as `left^T right` for each client, plus `scale` times its start.

    A layer that sees the raw examples moves within their span, so the examples and one row of coefficients each say
    all about it. Few examples make that shorter than the change itself.

    Args:
        right_norms: of each client's `right`.

    Shapes: `left [C, n, out]`, `right [C, n, in]`, `scale, right_norms [C]`, `start [out, in]` or `[C, out, in]`.
    """

    left: Tensor
    right: Tensor
    scale: Tensor | None
    start: Tensor
    right_norms: Tensor

    def dense(self) -> Tensor:
        """Return the changes `[C, out, in]`."""
        product = torch.bmm(self.left.transpose(1, 2), self.right)
        return product if self.scale is None else product + self.scale[:, None, None] * self.start

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return `sum_c weights[c] * change[c]`, `[out, in]`, as one product."""
        left = (self.left * weights[:, None, None]).flatten(0, 1)
        total = left.t() @ self.right.flatten(0, 1)
        if self.scale is None:
            return total
        factors = weights * self.scale
        if self.start.dim() == 2:
            return total + factors.sum() * self.start
        return total + torch.tensordot(factors, self.start, dims=1)

    def norms(self) -> Tensor:
        """Return a number a client that is NaN or infinite when its change may hold such a value, `[C]`."""
        norms = torch.linalg.vector_norm(self.left.flatten(1), dim=1) * self.right_norms
        return norms if self.scale is None else norms + self.scale.abs()

    def rows(self, kept: Tensor) -> Product:
        """Return the product of some of the clients."""
        scale = None if self.scale is None else self.scale[kept]
        start = self.start[kept] if self.start.dim() == 3 else self.start
        return Product(self.left[kept], self.right[kept], scale, start, self.right_norms[kept])


class Group(NamedTuple):
    """Clients that were trained as one program.

    Args:
        changes: by name, in the model's order, their changes stacked `[C, ...]` or as a product.
        num_steps, loss: of each client; the loss is the mean of an example.
    """

    changes: dict[str, Tensor | Product]
    num_steps: list[int]
    loss: list[float]

    def failed(self) -> list[str]:
        """Say for each client why its change is not finite; empty where it is."""
        norms = [
            each.norms() if isinstance(each, Product) else torch.linalg.vector_norm(each.flatten(1), dim=1)
            for each in self.changes.values()
        ]
        finite = torch.stack(norms).isfinite().all(dim=0).tolist()
        return [
            "" if good and math.isfinite(mean) else f"training diverged: mean loss {mean} after {steps} steps"
            for good, mean, steps in zip(finite, self.loss, self.num_steps, strict=True)
        ]

    def multiply_out(self) -> dict[str, Tensor]:
        """Replace products by what they come to, once, and return the changes."""
        for name, change in self.changes.items():
            if isinstance(change, Product):
                self.changes[name] = change.dense()
        return self.changes  # type: ignore[return-value]

    def weighted_sum(self, weights: Sequence[float], kept: Sequence[int]) -> dict[str, Tensor]:
        """Return `sum_c weights[c] * change[c]` over the clients `kept`, one product a tensor."""
        total = {}
        given = torch.tensor([weights[row] for row in kept], dtype=torch.float64)
        rows = torch.tensor(kept, dtype=torch.int64) if len(kept) < len(weights) else None
        for name, change in self.changes.items():
            factors = given.to(change.left if isinstance(change, Product) else change)
            if rows is not None:  # zero times infinity is not zero: who failed is left out, not weighed by zero
                own = rows.to(factors.device)
                change = change.rows(own) if isinstance(change, Product) else change[own]
            if isinstance(change, Product):
                total[name] = change.weighted_sum(factors)
            elif len(change) == 1:
                total[name] = change[0] * factors[0]
            else:
                total[name] = torch.mm(factors[None], change.reshape(len(change), -1)).view(change.shape[1:])
        return total


class Stacked:
    """The results of a block of clients, in the order in which they were asked for.

    Args:
        groups: of consecutive clients.

    `num_steps` and `loss` hold a number a client; `failed` says why a client's change is not finite, or is empty.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = list(groups)
        self.num_steps = [steps for group in groups for steps in group.num_steps]
        self.loss = [loss for group in groups for loss in group.loss]
        self.failed = [why for group in groups for why in group.failed()]
        self._where = [(group, row) for group in groups for row in range(len(group.loss))]

    def __len__(self) -> int:
        return len(self.num_steps)

    @property
    def deltas(self) -> dict[str, Tensor]:
        """The changes by name, stacked `[C, ...]`."""
        trees = [group.multiply_out() for group in self._groups]
        if len(trees) == 1:
            return dict(trees[0])
        return {name: torch.cat([tree[name] for tree in trees]) for name in trees[0]}

    def tree(self, row: int) -> dict[str, Tensor]:
        """Return the change of one client, as views."""
        group, place = self._where[row]
        return {name: change[place] for name, change in group.multiply_out().items()}

    def weighted_sum(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """Return `sum_c weights[c] * change[c]` over the clients that did not fail; nothing when all did.

        Products are summed as they are: a layer's change is never written down for a client.

        Raises:
            ValueError: when there is not one weight a client.
        """
        if len(weights) != len(self):
            raise ValueError(f"{len(self)} clients need as many weights, got {len(weights)}")
        total: dict[str, Tensor] = {}
        first = 0
        for group in self._groups:
            rows = range(first, first + len(group.loss))
            kept = [row - first for row in rows if not self.failed[row]]
            if kept:
                part = group.weighted_sum([weights[row] for row in rows], kept)
                if total:
                    torch._foreach_add_(list(total.values()), [part[name] for name in total])
                else:
                    total = part
            first = rows.stop
        return total
