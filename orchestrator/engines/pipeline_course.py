"""What a pipeline's gang trains: the program of its ranks, and the same ranks in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.schema import Pipeline
from orchestrator.preparing import Prepared
from orchestrator.stages import Stages, settings_of, summarise_stages
from trainers.activations import remembers
from trainers.loop import Spans
from trainers.pipeline.state import Trees

if TYPE_CHECKING:
    from cluster.gang import Gang


class PipelineCourse:
    """A pipeline: see `trainers.pipeline`."""

    program = "trainers.pipeline.program:run"
    place = "the pipeline"
    writes = False

    def __init__(self, prepared: Prepared, stages: Stages) -> None:
        strategy = prepared.experiment.strategy
        assert isinstance(strategy, Pipeline)
        self._prepared, self._stages = prepared, stages
        self._settings = settings_of(prepared.experiment, stages)
        self.num_measuring = 1
        self.num_drawn = strategy.stages
        own = remembers(self._settings.memory) or strategy.shard_optimizer  # ranges, or shares, of every replica
        self.num_savers = strategy.num_ranks if own else strategy.stages

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `course.Course.arguments`."""
        return {
            "settings": self._settings._asdict(),
            "dataset": gang.share(self._prepared.dataset),
            "evaluate_batch": self._prepared.experiment.evaluate.batch_size,
        }

    def inline(self, device: torch.device) -> _InlinePipeline:
        """As `course.Course.inline`."""
        from trainers.pipeline.inline import InlinePipeline

        ranks = InlinePipeline(self._settings, self._prepared.dataset, device)
        return _InlinePipeline(ranks, self._prepared.experiment.evaluate.batch_size)

    def summary(self) -> dict[str, Any]:
        """As `course.Course.summary`."""
        return summarise_stages(self._prepared.experiment, self._stages)


class _InlinePipeline:
    """All stages of a pipeline in this process, as the engine sees them."""

    ends = False

    def __init__(self, ranks: Any, evaluate_batch: int) -> None:
        self._ranks, self._evaluate_batch = ranks, evaluate_batch

    def step(self, number: int) -> Mapping[str, float]:
        return self._ranks.step(number).outcome().values  # type: ignore[no-any-return]

    def evaluate(self, number: int) -> Mapping[str, float]:
        return self._ranks.evaluate(self._evaluate_batch).values()  # type: ignore[no-any-return]

    def export(self) -> Trees:
        from trainers.pipeline.state import whole

        return whole(self._ranks.ranks)

    def restore(self, trees: Trees) -> None:
        self._ranks.restore(trees)

    def spans_since(self, began_s: float) -> Sequence[Spans]:
        return self._ranks.spans_since(began_s)  # type: ignore[no-any-return]
