"""What every rank of a pipeline is told, in plain values; each works out its own part from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from strategies.pipeline import Placement, Schedule, placement, schedule, splits_backward
from trainers.gradients import Shaping
from trainers.order import Order


class Settings(NamedTuple):
    """A pipeline's training.

    Args:
        model: the experiment's `model` section. seed: the run's. model_seed: the model's own.
        stages: ranks of one pipeline. replicas: pipelines that share each batch.
        schedule: its name in `strategies.pipeline`. microbatches: of a batch and replica, at most.
        layers: how many layers each position of the model has; `stages * chunks` positions.
        recompute: for each stage `always`, `except-last` or `never`.
        batch_size: examples of one batch, over all replicas. accumulate: batches of one optimizer step.
        optimizer: name and arguments. learning_rate: its schedule. clip_norm: of the whole gradient.
        loss: see `losses.build`. precision: `bf16` or None. steps: of the whole run.
        clip_value, gradient_noise: see `trainers.gradients`.
        shard_optimizer: whether the replicas of a stage share out what the optimizer remembers.
        memory: how activations are kept, see `trainers.activations`; None as they are.
    """

    model: Mapping[str, Any]
    seed: int
    model_seed: int
    stages: int
    replicas: int
    schedule: str
    microbatches: int
    layers: tuple[int, ...]
    recompute: tuple[str, ...]
    batch_size: int
    accumulate: int
    optimizer: Mapping[str, Any]
    learning_rate: Mapping[str, Any]
    clip_norm: float | None
    loss: Mapping[str, Any]
    precision: str | None
    steps: int
    memory: Mapping[str, Any] | None = None
    clip_value: float | None = None
    gradient_noise: Mapping[str, Any] | None = None
    shard_optimizer: bool = False

    @property
    def shaping(self) -> Shaping:
        """What is done to gradients."""
        return Shaping.of(self.clip_value, self.gradient_noise, self.seed)

    @property
    def chunks(self) -> int:
        """Chunks of each rank."""
        return len(self.layers) // self.stages

    @property
    def placement(self) -> Placement:
        """Which positions of the model each rank holds."""
        return placement(self.schedule, self.stages, self.chunks)

    @property
    def splits_backward(self) -> bool:
        return splits_backward(self.schedule)

    def actions(self, num_microbatches: int) -> Schedule:
        """Return the schedule of a batch of so many micro-batches."""
        return schedule(self.schedule, self.stages, num_microbatches, self.chunks)

    def keeps(self, stage: int, num_microbatches: int) -> list[bool]:
        """Return for each micro-batch whether its activations are kept rather than computed again."""
        mode = self.recompute[stage]
        last = num_microbatches - 1
        return [mode == "never" or (mode == "except-last" and m == last) for m in range(num_microbatches)]


class Batches:
    """Which batches, in their `Order`, each optimizer step has, and which micro-batches they are cut into."""

    def __init__(self, settings: Settings, num_examples: int) -> None:
        self._settings = settings
        self._order = Order(settings.seed, settings.batch_size, num_examples)

    def of_step(self, step: int) -> list[np.ndarray]:
        """Return the rows of each batch that step `step` (1-based) accumulates."""
        return self._order.of_step(step, self._settings.accumulate)

    def split(self, rows: np.ndarray, replica: int) -> list[np.ndarray]:
        """Return a replica's micro-batches of a batch: as many as asked for, or as there are examples."""
        share = np.array_split(rows, self._settings.replicas)[replica]
        return np.array_split(share, max(1, min(self._settings.microbatches, len(share))))
