"""What every rank of a ZeRO gang is told, in plain values, and which part of each batch it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from strategies.seeds import integer
from trainers.gradients import Shaping
from trainers.order import Order
from trainers.pipeline import losses


class Settings(NamedTuple):
    """The training of one model by ranks that share each batch.

    Args:
        model: the experiment's `model` section. seed: the run's. model_seed: the model's own.
        stage: of ZeRO, 0 to 3. offload: `none`, `cpu` or `nvme`. nvme_folder: where `nvme` puts what it swaps out.
        batch_size: examples of one batch, over all ranks. accumulate: batches of one optimizer step.
        optimizer: name and arguments. learning_rate: its schedule. clip_norm: of the whole gradient.
        loss: see `trainers.pipeline.losses.build`. precision: `bf16` or None. steps: of the whole run.
        deepspeed: the user's own DeepSpeed configuration, see `native.configuration`.
        memory: the experiment's section, see `keeping`; None keeps activations as they are.
        clip_value, gradient_noise: see `trainers.gradients`.
    """

    model: Mapping[str, Any]
    seed: int
    model_seed: int
    ranks: int
    stage: int
    offload: str
    nvme_folder: str | None
    batch_size: int
    accumulate: int
    optimizer: Mapping[str, Any]
    learning_rate: Mapping[str, Any]
    clip_norm: float | None
    loss: Mapping[str, Any]
    precision: str | None
    steps: int
    deepspeed: Mapping[str, Any] = {}
    memory: Mapping[str, Any] | None = None
    clip_value: float | None = None
    gradient_noise: Mapping[str, Any] | None = None

    @property
    def shaping(self) -> Shaping:
        """What is done to gradients."""
        return Shaping.of(self.clip_value, self.gradient_noise, self.seed)


class Share(NamedTuple):
    """One rank's part of one batch of a step.

    Args:
        rows: its examples. weight: what its loss is multiplied by, so that the sum over the shares of a step is the
            loss of the step's batches. seed: of what its layers draw.
    """

    rows: np.ndarray
    weight: float
    seed: int


class Shares:
    """Which examples each rank has of each step, worked out by any rank for itself.

    Batches are those of `trainers.order.Order`, cut by `numpy.array_split`. A rank that there is no example
    for takes another's first one with weight 0: in stage 3 all ranks go through a model together.
    """

    def __init__(self, settings: Settings, num_examples: int) -> None:
        self._settings = settings
        self._order = Order(settings.seed, settings.batch_size, num_examples)

    def of_step(self, step: int, rank: int) -> list[Share]:
        """Return a rank's share of each batch that step `step`, from 1, accumulates."""
        settings = self._settings
        batches = self._order.of_step(step, settings.accumulate)
        total = sum(len(rows) for rows in batches)
        found = []
        for index, rows in enumerate(batches):
            share = np.array_split(rows, settings.ranks)[rank]
            weight = losses.weight(settings.loss["reduction"], len(share), total) if len(share) else 0.0
            seed = integer(settings.seed, "layers", step, index, rank)
            found.append(Share(share if len(share) else rows[:1], weight, seed))
        return found


def parts_of_tests(num_examples: int, batch_size: int, ranks: int, rank: int) -> list[np.ndarray]:
    """Return the rows of each batch of test examples that a rank goes through; the same number of them on every rank.

    A part may be empty: its rank goes through some other example and counts it for nothing.
    """
    shares = np.array_split(np.arange(num_examples), ranks)
    num_parts = max(1, -(-max(map(len, shares)) // batch_size))
    return np.array_split(shares[rank], num_parts)
