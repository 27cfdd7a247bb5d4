"""What a sharded gang trains: the program of its ranks, and the same steps on whole tensors in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.preparing import Prepared
from orchestrator.sharded_layouts import Layouts, summarise

if TYPE_CHECKING:
    from cluster.gang import Gang
    from trainers.sharded.inline import InlineSharded


class ShardedCourse:
    """Sharded layouts: see `trainers.sharded`."""

    program = "trainers.sharded.program:run"
    place = "the sharded run"
    writes = False

    def __init__(self, prepared: Prepared, layouts: Layouts) -> None:
        self._prepared, self._layouts = prepared, layouts
        self.num_measuring = 1
        self.num_drawn = self.num_savers = layouts.settings.num_ranks

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `course.Course.arguments`."""
        return {"settings": self._layouts.settings._asdict(), "dataset": gang.share(self._prepared.dataset)}

    def inline(self, device: torch.device) -> InlineSharded:
        """As `course.Course.inline`."""
        from trainers.sharded.inline import InlineSharded

        return InlineSharded(self._layouts.settings, self._prepared.dataset, device)

    def summary(self) -> dict[str, Any]:
        """As `course.Course.summary`."""
        return summarise(self._prepared.experiment, self._layouts)
