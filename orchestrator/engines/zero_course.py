"""What a gang of ZeRO trains: the program of its ranks on DeepSpeed, and the same training in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.schema import Zero
from orchestrator.preparing import Prepared
from orchestrator.zero_plan import summarise
from orchestrator.zero_sizes import settings_of, sizes

if TYPE_CHECKING:
    from cluster.gang import Gang
    from trainers.zero.inline import InlineZero


class ZeroCourse:
    """ZeRO: see `trainers.zero`."""

    program = "trainers.shared_folder:run"
    place = "ZeRO"
    writes = True

    def __init__(self, prepared: Prepared) -> None:
        strategy = prepared.experiment.strategy
        assert isinstance(strategy, Zero)
        self._prepared = prepared
        self._settings = settings_of(prepared.experiment)
        self.num_measuring = 1
        self.num_drawn = self.num_savers = strategy.ranks

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `course.Course.arguments`."""
        return {
            "program": "trainers.zero.program:run",
            "settings": self._settings._asdict(),
            "dataset": gang.share(self._prepared.dataset),
            "evaluate_batch": self._prepared.experiment.evaluate.batch_size,
        }

    def inline(self, device: torch.device) -> InlineZero:
        """As `course.Course.inline`."""
        from trainers.zero.inline import InlineZero

        evaluate_batch = self._prepared.experiment.evaluate.batch_size
        return InlineZero(self._settings, self._prepared.dataset, device, evaluate_batch)

    def summary(self) -> dict[str, Any]:
        """As `course.Course.summary`."""
        return summarise(self._prepared.experiment, sizes(self._prepared))
