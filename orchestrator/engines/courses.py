"""What the gangs of each strategy train: the programs of their ranks, and the same ranks in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.config.schema import GraphPipeline, Pipeline
from orchestrator.errors import ConfigError, Problem
from orchestrator.files import to_json
from orchestrator.preparing import Prepared
from orchestrator.storage import storage_root
from trainers import modules
from trainers.activations import remembers
from trainers.data.base import DataError
from trainers.data.graphs import store
from trainers.loop import Spans
from trainers.pipeline.state import Trees

if TYPE_CHECKING:
    from cluster.gang import Gang
    from orchestrator.graph_stages import GraphStages
    from orchestrator.stages import Stages
    from trainers.graph.inline import InlineGraphPipeline


class PipelineCourse:
    """A pipeline: see `trainers.pipeline`."""

    program = "trainers.pipeline.program:run"
    place = "the pipeline"
    writes = False

    def __init__(self, prepared: Prepared, stages: Stages) -> None:
        from orchestrator.stages import settings_of

        strategy = prepared.experiment.strategy
        assert isinstance(strategy, Pipeline)
        self._prepared, self._stages = prepared, stages
        self._settings = settings_of(prepared.experiment, stages)
        self.num_measuring = 1
        self.num_drawn = strategy.stages
        own = remembers(self._settings.memory) or strategy.shard_optimizer  # ranges, or shares, of every replica
        self.num_savers = strategy.num_ranks if own else strategy.stages
        self.names: Sequence[str] = list(dict(modules.everything(prepared.model)))

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `gang.Course.arguments`."""
        return {
            "settings": self._settings._asdict(),
            "dataset": gang.share(self._prepared.dataset),
            "evaluate_batch": self._prepared.experiment.evaluate.batch_size,
        }

    def inline(self, device: torch.device) -> _InlinePipeline:
        """As `gang.Course.inline`."""
        from trainers.pipeline.inline import InlinePipeline

        ranks = InlinePipeline(self._settings, self._prepared.dataset, device)
        return _InlinePipeline(ranks, self._prepared.experiment.evaluate.batch_size)

    def summary(self) -> dict[str, Any]:
        """As `gang.Course.summary`."""
        from orchestrator.stages import summarise_stages

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


class GraphCourse:
    """A graph pipeline: see `trainers.graph`."""

    program = "trainers.graph.program:run"
    place = "the graph pipeline"
    writes = False

    def __init__(self, prepared: Prepared, stages: GraphStages) -> None:
        from orchestrator.graph_stages import settings_of

        strategy = prepared.experiment.strategy
        assert isinstance(strategy, GraphPipeline)
        self._prepared, self._stages = prepared, stages
        self._settings = settings_of(prepared.experiment, stages.layers)
        self.num_measuring = 1
        self.num_drawn = self.num_savers = strategy.num_ranks
        self.names: Sequence[str] = list(dict(modules.everything(prepared.model)))

    def arguments(self, gang: Gang) -> Mapping[str, Any]:
        """As `gang.Course.arguments`."""
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
        """As `gang.Course.inline`."""
        from trainers.graph.inline import InlineGraphPipeline

        return InlineGraphPipeline(self._settings, self._prepared.dataset, device, self._stages.cut)

    def summary(self) -> dict[str, Any]:
        """As `gang.Course.summary`."""
        from orchestrator.graph_stages import summarise

        return summarise(self._prepared.experiment, self._stages)
