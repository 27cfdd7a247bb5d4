"""What a gang of local learning trains: the program of its ranks, and the same workers in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.schema import LocalLearning
from orchestrator.local_stages import LocalStages, settings_of, summarise
from orchestrator.preparing import Prepared

if TYPE_CHECKING:
    from cluster.gang import Gang
    from trainers.decoupled.inline import InlineWorkers


class LocalCourse:
    """Local learning: see `trainers.decoupled`."""

    place = "local learning"
    writes = False

    def __init__(self, prepared: Prepared, stages: LocalStages) -> None:
        strategy = prepared.experiment.strategy
        assert isinstance(strategy, LocalLearning)
        self._prepared, self._stages = prepared, stages
        self.program = f"trainers.decoupled.{'recovering' if strategy.replaces else 'program'}:run"
        self._settings = settings_of(prepared.experiment, stages.shares)
        self.num_measuring = self.num_drawn = self.num_savers = strategy.modules

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `course.Course.arguments`."""
        return {
            "settings": self._settings._asdict(),
            "dataset": gang.share(self._prepared.dataset),
            "origin_s": time.time(),
        }

    def inline(self, device: torch.device) -> InlineWorkers:
        """As `course.Course.inline`."""
        from trainers.decoupled.inline import InlineReplay, InlineWorkers

        kind = InlineReplay if self._settings.regime == "asynchronous" else InlineWorkers
        return kind(self._settings, self._prepared.dataset, device)

    def summary(self) -> dict[str, Any]:
        """As `course.Course.summary`."""
        return summarise(self._prepared.experiment, self._stages)
