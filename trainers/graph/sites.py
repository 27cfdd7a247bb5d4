"""Where layers aggregate, chunk by chunk: fresh rows of chunks that have been, older ones of those to come.

A *site* is one aggregation in the model. It keeps a table of rows, of this way's vertices and of those of other ways
that they aggregate from. In an epoch, chunks come in some order; chunk c's forward writes its rows and multiplies

    forward c     rows[c] <- x;       result = A[c, :] rows             later chunks' rows are those of the history
    backward c    gradients[c] <- g;  returned = A[:, c]^T gradients    later chunks have been, earlier ones are zero
                                                                        entries of other chunks are times `correction`

Backward visits chunks in reverse. With `correction` 1 this is autograd with the history detached, exactly: what chunk
r took fresh from c comes back, what it took from history does not. With 2, gradients that cross chunks count twice:
over random orders half of them are missing, so the mean over orders of one such hop is right, and of several is not.

Source: GNNPipe (arXiv:2308.10087), its techniques 1 to 3, as its artefact does them. Deviation: rows between ways
are exchanged for the chunk under way only, as there, but by lists of rows that are needed, not by a hash of vertices.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.graph.ages import Ages
from trainers.graph.exchange import Exchange
from trainers.graph.kernels import Matrix
from trainers.graph.reach import Reach
from trainers.graph.tables import Place, Returns, unchanged


class Site(Place):
    """One aggregation with a fixed matrix.

    Args:
        kind: of the matrix. back: which gradients are read where, as `ages` of rows. others: as of `Place`.
    """

    def __init__(
        self,
        name: str,
        number: int,
        kind: str,
        reach: Reach,
        exchange: Exchange,
        like: Tensor,
        ages: Ages,
        back: Ages,
        **options: Any,
    ) -> None:
        super().__init__(name, number, reach.sheets(kind, backward=False), reach, exchange, like, ages, **options)
        self._backward, self._back = reach.sheets(kind, backward=True), back
        self._written_gradients: set[int] = set()

    @property
    def returns(self) -> Returns:
        """Whose gradients have come back so far."""
        return "" if self._gradients is None else "read by"

    def begin(self) -> None:
        """Begin an epoch."""
        super().begin()
        self._written_gradients.clear()

    def forward(self, slot: int, x: Tensor, again: bool) -> Tensor:
        """Return the aggregate of a chunk's vertices; `again`, when the chunk is computed a second time, the same."""
        if again:
            return self._results.pop(slot)
        rows = self._written(slot, x)
        result = self._ages.product(slot).multiply(rows)
        if self._keep:
            self._results.put(slot, result)
        return result

    def backward(self, slot: int, gradient: Tensor) -> Tensor:
        """Return the gradient of a chunk's rows."""
        if self._gradients is None:
            self._gradients = self._like.new_zeros(self._back.num_rows, self._like.shape[1])
        rows = self._gradients
        rows[self._reach.rows(slot)] = gradient
        self._swap("B", self._backward, slot, gradient, rows)
        self._back.catch_up(slot, rows, self._written_gradients)
        return self._back.product(slot).multiply(rows)

    def infer(self, x: Tensor) -> Tensor:
        """Return the aggregate of all vertices of this way at once; the table stays as it is."""
        rows = self._everybody(x) if self._reach.ways > 1 else x
        return torch.cat([product.multiply(rows) for product in self._forward.products])


class Constant:
    """An aggregation of the input features themselves: the same in every epoch, exact, and computed once.

    Args:
        features: of all rows that this way reads.
    """

    def __init__(self, products: tuple[Matrix, ...], features: Tensor) -> None:
        self._results = [product.multiply(features) for product in products]
        self._versions = [result._version for result in self._results]

    def of(self, slot: int | None) -> Tensor:
        """Return a chunk's aggregate, or that of all.

        Raises:
            RuntimeError: as `unchanged`.
        """
        results = list(map(unchanged, self._results, self._versions))
        return torch.cat(results) if slot is None else results[slot]
