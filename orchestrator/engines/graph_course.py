"""What a graph pipeline's gang trains: the program of its ranks, and the same ranks in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.schema import GraphPipeline
from orchestrator.errors import ConfigError, Problem
from orchestrator.files import to_json
from orchestrator.graph_stages import GraphStages, settings_of, summarise
from orchestrator.preparing import Prepared
from orchestrator.storage import storage_root
from trainers.data.base import DataError
from trainers.data.graphs import store

if TYPE_CHECKING:
    from cluster.gang import Gang
    from trainers.graph.inline import InlineGraphPipeline


class GraphCourse:
    """A graph pipeline: see `trainers.graph`."""

    program = "trainers.graph.program:run"
    place = "the graph pipeline"
    writes = False

    def __init__(self, prepared: Prepared, stages: GraphStages) -> None:
        strategy = prepared.experiment.strategy
        assert isinstance(strategy, GraphPipeline)
        self._prepared, self._stages = prepared, stages
        self._settings = settings_of(prepared.experiment, stages.layers)
        self.num_measuring = 1
        self.num_drawn = self.num_savers = strategy.num_ranks

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `course.Course.arguments`."""
        return {
            "settings": self._settings._asdict(),
            "data": gang.share(self._prepared.dataset) if self._folder is None else str(self._write(self._folder)),
            "layout": gang.share(self._stages.cut),
        }

    @property
    def _folder(self) -> Path | None:
        """Where ranks map the graph from; None where they cannot be taken to see one."""
        experiment = self._prepared.experiment
        strategy = experiment.strategy
        assert isinstance(strategy, GraphPipeline)
        if strategy.graph_folder is not None:
            return Path(strategy.graph_folder).expanduser().absolute()
        return storage_root(experiment).absolute() / ".graphs" if experiment.cluster.address == "local" else None

    def _write(self, folder: Path) -> Path:
        """Keep the graph as arrays in a folder of its own, unless it is there."""
        experiment, data = self._prepared.experiment, self._prepared.dataset
        asked = to_json([experiment.data.model_dump(mode="json"), experiment.seed])
        place = folder / f"{data.name}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
        try:
            store.write(place, data)
        except DataError as error:
            path = "strategy.graph_folder"
            raise ConfigError([Problem("", path, error.message, error.hint)]) from error
        return place

    def inline(self, device: torch.device) -> InlineGraphPipeline:
        """As `course.Course.inline`."""
        from trainers.graph.inline import InlineGraphPipeline

        return InlineGraphPipeline(self._settings, self._prepared.dataset, device, self._stages.cut)

    def summary(self) -> dict[str, Any]:
        """As `course.Course.summary`."""
        return summarise(self._prepared.experiment, self._stages)
