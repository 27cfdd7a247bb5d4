"""All ranks of a pipeline in this process, taking turns: for debuggers, for tests, and for one device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from trainers.data.base import Dataset
from trainers.loop import Spans
from trainers.pipeline.collective import LocalCollective
from trainers.pipeline.rank import Evaluated, Rank, StepResult
from trainers.pipeline.settings import Settings
from trainers.pipeline.state import Trees, restore
from trainers.pipeline.transport import LocalTransport


class InlinePipeline:
    """Every stage of every replica, on one device."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device | None = None) -> None:
        world = settings.stages * settings.replicas
        sizes = {"all": world, **{f"stage {stage}": settings.replicas for stage in range(settings.stages)}}
        board: dict[tuple[str, int], dict[int, Tensor]] = {}
        self.ranks: list[Rank] = []
        self._transports: list[LocalTransport] = []
        for replica in range(settings.replicas):
            transport = LocalTransport()
            self._transports.append(transport)
            for stage in range(settings.stages):
                collective = LocalCollective(sizes, board, replica * settings.stages + stage)
                where = device or torch.device("cpu")
                self.ranks.append(Rank(settings, dataset, stage, replica, transport, collective, where))

    def step(self, number: int, stop: bool = False) -> StepResult:
        """Train one optimizer step."""
        result = _in_turns([rank.step(number, stop) for rank in self.ranks])
        assert not any(transport.waiting() for transport in self._transports)
        return result  # type: ignore[no-any-return]

    def restore(self, trees: Trees) -> None:
        """Take the whole state."""
        for rank in self.ranks:
            restore(rank, trees, rank.replica)

    def spans_since(self, began_s: float) -> list[Spans]:
        """Return what each stage of the first replica did in the last step, in seconds since `began_s`."""
        return [rank.spans_since(began_s) for rank in self.ranks if rank.replica == 0]

    def evaluate(self, batch_size: int) -> Evaluated:
        """Measure on the test examples."""
        return _in_turns([rank.evaluate(batch_size) for rank in self.ranks])  # type: ignore[no-any-return]


def _in_turns(generators: Iterable[Iterator[Any]]) -> Any:
    """Advance each generator until all have ended; return the last thing that the first one yielded."""
    waiting = list(enumerate(generators))
    last: Any = None
    while waiting:
        going = []
        for index, generator in waiting:
            try:
                value = next(generator)
            except StopIteration:
                continue
            if index == 0 and value is not None:
                last = value
            going.append((index, generator))
        waiting = going
    return last
