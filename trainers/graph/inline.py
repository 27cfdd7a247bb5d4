"""All ranks of a graph pipeline in this process, taking turns: for debuggers, for tests, and for one device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from strategies.graph.layout import Layout
from trainers.data.graphs.base import GraphData
from trainers.graph.rank import EpochResult, GraphRank, divided
from trainers.graph.settings import Settings
from trainers.graph.turns import TurnCollective, Turns, TurnTransport
from trainers.loop import Spans
from trainers.pipeline.state import copied, merge
from trainers.pipeline.transport import Key


class InlineGraphPipeline:
    """Every stage of every way, on one device."""

    def __init__(
        self, settings: Settings, data: GraphData, device: torch.device | None = None, cut: Layout | None = None
    ) -> None:
        cut = cut or divided(settings, data)
        stages, ways = settings.stages, settings.ways
        sizes = {"all": stages * ways, **{f"stage {stage}": ways for stage in range(stages)}}
        sums: dict[tuple[str, int], dict[int, Tensor]] = {}
        self._board: dict[tuple[str, int, Key], dict[str, Tensor]] = {}
        self._turns = Turns()

        def make(stage: int, way: int) -> Callable[[], GraphRank]:
            between = TurnTransport(self._turns, self._board, f"way {way}", stage)
            among = TurnTransport(self._turns, self._board, f"stage {stage}", way) if ways > 1 else None
            collective = TurnCollective(self._turns, sizes, sums, ways * stage + way)
            where = device or torch.device("cpu")
            return lambda: GraphRank(settings, data, cut, stage, way, between, among, collective, where)

        self.ranks = self._turns.run([make(stage, way) for stage in range(stages) for way in range(ways)])

    def step(self, number: int) -> Mapping[str, float]:
        """Train one epoch; figures by metric name."""
        return self.epoch(number).outcome().values

    def epoch(self, number: int) -> EpochResult:
        """Train one epoch."""
        return self._all(lambda rank: rank.epoch(number))  # type: ignore[no-any-return]

    def evaluate(self, number: int) -> dict[str, float]:
        """Measure the model after an epoch."""
        return self._all(lambda rank: rank.evaluate(number))  # type: ignore[no-any-return]

    @property
    def ends(self) -> bool:
        """Whether no better model is waited for."""
        return self.ranks[0].ends

    def restore(self, trees: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the whole state."""
        for rank in self.ranks:
            rank.restore(trees)

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return a copy of the whole state."""
        return copied(merge([rank.export() for rank in self.ranks], self.ranks[0].part.names))

    def spans_since(self, began_s: float) -> list[Spans]:
        """Return what each rank did in the last epoch, in seconds since `began_s`."""
        return [rank.spans_since(began_s) for rank in self.ranks]

    def _all(self, work: Callable[[GraphRank], Any]) -> Any:
        found = self._turns.run([lambda rank=rank: work(rank) for rank in self.ranks])  # type: ignore[misc]
        assert not self._board, f"never received: {sorted(self._board)}"
        return found[0]
