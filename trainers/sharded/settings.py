"""What every rank of a sharded run is told, in plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from strategies.seeds import integer
from strategies.sharded import BROADCAST, Placement, parse
from trainers.order import Order


class Settings(NamedTuple):
    """A sharded run's training.

    Args:
        model: the experiment's `model` section. seed: the run's. model_seed: the model's own.
        mesh: ranks along each axis. placements: of every parameter that does not lie whole on all ranks, one entry an
            axis, as text. batch_axes: axes that the examples of a batch are split over.
        batch_size: examples of a batch, over all ranks. accumulate: batches of one optimizer step.
        optimizer, learning_rate, loss: sections. clip_norm: of the whole gradient. precision: `bf16` or None.
        evaluate_batch: test examples of one forward. steps: of the whole run.
        clip_value, gradient_noise: see `trainers.gradients`. memory: which activations wait in 8 bits, or None.
    """

    model: Mapping[str, Any]
    seed: int
    model_seed: int
    mesh: tuple[int, ...]
    placements: Mapping[str, tuple[str, ...]]
    batch_axes: tuple[int, ...]
    batch_size: int
    accumulate: int
    optimizer: Mapping[str, Any]
    learning_rate: Mapping[str, Any]
    clip_norm: float | None
    loss: Mapping[str, Any]
    precision: str | None
    evaluate_batch: int
    steps: int
    clip_value: float | None = None
    gradient_noise: Mapping[str, Any] | None = None
    memory: Mapping[str, Any] | None = None

    @property
    def num_ranks(self) -> int:
        return int(np.prod(self.mesh))

    @property
    def batch_ranks(self) -> int:
        """Ranks that a batch is split over."""
        return int(np.prod([self.mesh[axis] for axis in self.batch_axes]))

    def placement(self, name: str) -> tuple[Placement, ...]:
        """Return how a parameter lies, one entry an axis."""
        given = self.placements.get(name)
        return tuple(map(parse, given)) if given is not None else (BROADCAST,) * len(self.mesh)

    def batches(self, num_examples: int, step: int) -> list[np.ndarray]:
        """Return the rows of each batch that step `step` (1-based) accumulates."""
        return Order(self.seed, self.batch_size, num_examples).of_step(step, self.accumulate)

    def batch_seed(self, step: int, index: int) -> int:
        """Return what layers that draw begin with, the same on every rank."""
        return integer(self.seed, "layers", step, index, 0)
