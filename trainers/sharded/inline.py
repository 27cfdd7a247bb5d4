"""A sharded run without ranks: the same steps on whole tensors in this process, which every layout must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainers import modules
from trainers.data.base import Dataset
from trainers.loop import Spans
from trainers.pipeline.state import Trees, merge
from trainers.sharded.layout import OneProcess
from trainers.sharded.rank import Rank
from trainers.sharded.settings import Settings


class InlineSharded:
    """All of it, on one device."""

    ends = False

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device | None = None) -> None:
        alone = settings._replace(mesh=(1,), placements={}, batch_axes=())
        self._rank = Rank(alone, dataset, 0, OneProcess(), device or torch.device("cpu"))
        self._names = list(dict(modules.everything(self._rank.model)))

    def step(self, number: int) -> Mapping[str, float]:
        """Train on the batches of a step, from 1; figures by metric name."""
        return self._rank.step(number).values

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Measure the model after a step."""
        return self._rank.evaluate(number)

    def restore(self, trees: Trees) -> None:
        """Take a whole state."""
        self._rank.restore(trees)

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return a copy of the whole state."""
        return merge([self._rank.export()], self._names)

    def spans_since(self, began_s: float) -> Sequence[Spans]:
        """Return what was done in the last step."""
        return [self._rank.spans_since(began_s)]
