"""All workers of a local-learning run in this process: for debuggers, for tests, and for one device.

Lossless, each batch goes down the workers before the next one begins: no worker ever waits. Asynchronous, a seeded
clock says whose turn it is (`strategies.local.replay.Ticks`), so that here, other than between processes, the same
seed gives the same bits; slow workers are slow on that clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from strategies.local import Carry
from strategies.local.replay import Ticks
from trainers import modules
from trainers.data.base import Dataset
from trainers.decoupled.links import Link, Mark
from trainers.decoupled.replaying import ReplayingWorker
from trainers.decoupled.settings import Settings, build
from trainers.decoupled.worker import Worker
from trainers.loop import Spans
from trainers.pipeline.state import Trees, copied, merge
from trainers.pipeline.transport import LocalTransport


class InlineWorkers:
    """Every worker, on one device."""

    ends = False

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device | None = None) -> None:
        built = build(settings, dataset)
        self._names = list(dict(modules.everything(built.model)))
        self._transport = LocalTransport()
        self.workers: list[Any] = []
        for number in range(settings.num_workers):
            link = Link(self._transport, number, None, settings.queue, counts=False)
            made = self._make(number, settings, dataset, built, number, link, device or torch.device("cpu"))
            self.workers.append(made(origin_s=time.time()))

    def _make(self, number: int, *args: Any) -> Any:
        return partial(Worker, *args)

    def step(self, number: int) -> Mapping[str, float]:
        """Train every module on a batch, from 1; figures by metric name."""
        values: dict[str, float] = {}
        for worker in reversed(self.workers):
            worker.descend(number)
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
        return copied(merge([worker.export() for worker in self.workers], self._names))

    def spans_since(self, began_s: float) -> list[Spans]:
        """Return what each worker did in the last batches."""
        return [worker.spans_since(began_s) for worker in self.workers]


class InlineReplay(InlineWorkers):
    """Every worker of an asynchronous run, by the turns of a seeded clock.

    A step is over when the last worker has done it, or at the end of a quota all of them; others may be ahead of it,
    or behind.
    """

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device | None = None) -> None:
        super().__init__(settings, dataset, device)
        self._settings = settings
        self._clock = Ticks(settings.seed, settings.slowdown or (1.0,) * settings.num_workers)
        self._tick = 0

    def _make(self, number: int, *args: Any) -> Any:
        return partial(ReplayingWorker, *args, deliver=partial(self._deliver, number + 1))

    def _deliver(self, target: int, number: int, carry: Carry, mark: Mark) -> None:
        self.workers[target].hear({name: tensor.clone() for name, tensor in carry.items()}, mark)

    def step(self, number: int) -> Mapping[str, float]:
        """Let workers act until the last has done step `number`; figures by metric name."""
        end = self._settings.end_of_quota(number)
        due = self.workers if number == end else self.workers[-1:]
        values: Mapping[str, float] = {}
        while any(worker.num_steps < number for worker in due):
            worker = self.workers[self._clock.module(self._tick)]
            self._tick += 1
            if worker.num_steps < end and worker.ready():
                values = {**values, **worker.step(worker.num_steps + 1).values}
        return {**values, "time/virtual": self._tick * self._clock.tick_s}

    def export(self) -> dict[str, dict[str, Tensor]]:
        """As `InlineWorkers.export`, with the clock and how far each worker is, and has heard."""
        whole = super().export()
        places = [[worker.num_steps, worker.num_heard, *worker.heard] for worker in self.workers]
        return {**whole, "clock": {"tick": torch.tensor(self._tick), "places": torch.tensor(places)}}

    def restore(self, trees: Trees) -> None:
        """As `InlineWorkers.restore`."""
        super().restore(trees)
        if "clock" in trees:
            self._tick = int(trees["clock"]["tick"])
            for worker, place in zip(self.workers, trees["clock"]["places"].tolist(), strict=True):
                worker.num_steps, worker.num_heard, *heard = place
                worker.heard = Mark(*heard)
