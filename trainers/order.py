"""Which examples each batch of a gang has; ranks of all strategies with one seed and batch size see the same."""

from __future__ import annotations

import numpy as np

from strategies.seeds import generator


class Order:
    """Which examples each batch has, as a function of its number: any rank works it out for itself.

    Each epoch is shuffled anew; the examples beyond its last whole batch are left out of it, so that all batches have
    one size.
    """

    def __init__(self, seed: int, batch_size: int, num_examples: int) -> None:
        self._seed, self._size, self._num_examples = seed, batch_size, num_examples
        self._per_epoch = max(1, num_examples // batch_size)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batch(self, number: int) -> np.ndarray:
        """Return the rows of batch `number`, from 0."""
        epoch, index = divmod(number, self._per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, generator(self._seed, "batches", epoch).permutation(self._num_examples)
        return self._order[1][index * self._size : (index + 1) * self._size]

    def of_step(self, step: int, accumulate: int) -> list[np.ndarray]:
        """Return the rows of each of the batches that optimizer step `step`, from 1, accumulates."""
        return [self.batch((step - 1) * accumulate + index) for index in range(accumulate)]
