"""All workers of a local-learning run in this process: for debuggers, for tests, and for one device.

Each batch goes down the workers before the next one begins, so no worker ever waits and nothing else is needed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from trainers import modules
from trainers.data.base import Dataset
from trainers.decoupled.settings import Settings, build
from trainers.decoupled.worker import Worker
from trainers.loop import Spans
from trainers.pipeline.state import Trees, merge
from trainers.pipeline.transport import LocalTransport


class InlineWorkers:
    """Every worker, on one device."""

    ends = False

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device | None = None) -> None:
        built = build(settings, dataset)
        self._names = list(dict(modules.everything(built.model)))
        self._transport = LocalTransport()
        self.workers = [
            Worker(
                settings,
                dataset,
                built,
                number,
                None,
                self._transport,
                device or torch.device("cpu"),
                counts=False,
                origin_s=time.time(),
            )
            for number in range(settings.num_workers)
        ]

    def step(self, number: int) -> Mapping[str, float]:
        """Train every module on a batch, from 1; figures by metric name."""
        values: dict[str, float] = {}
        for worker in self.workers:
            values |= worker.step(number).values
        assert not self._transport.waiting()
        return values

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Measure the model after a batch."""
        values: dict[str, float] = {}
        for worker in self.workers:
            values |= worker.evaluate(number)
        return values

    def restore(self, trees: Trees) -> None:
        """Take a whole state."""
        for worker in self.workers:
            worker.restore(trees)

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return a copy of the whole state."""
        whole = merge([worker.export() for worker in self.workers], self._names)
        return {tree: {name: tensor.clone() for name, tensor in tensors.items()} for tree, tensors in whole.items()}

    def spans_since(self, began_s: float) -> list[Spans]:
        """Return what each worker did in the last batches."""
        return [worker.spans_since(began_s) for worker in self.workers]
