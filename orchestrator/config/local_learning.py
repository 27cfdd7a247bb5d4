"""The `strategy:` section of local learning: a rule, workers that own modules, and how batches pass between them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.config.fields import NonNegativeInt, PositiveFloat, PositiveInt
from orchestrator.config.gang import GangSection
from orchestrator.config.gradients import CLIP_VALUE, NOISE, GradientNoise
from orchestrator.config.local_rules import AugLocal, LocalRule
from orchestrator.config.memory import Memory
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.pipeline import LearningRate


class LocalLearning(GangSection):
    """Modules of one network in processes of their own, each trained by a loss of its own: no gradient crosses."""

    kind: Literal["local-learning"]
    rule: LocalRule = Field(AugLocal(name="auglocal"), description="what a module's loss is")
    modules: PositiveInt = Field(
        2, description="processes; each owns one module, or several in a row where the rule makes more of them"
    )
    replicas: dict[NonNegativeInt, PositiveInt] = Field(
        {},
        description="worker: processes that share its batches, each some of the rows, and make every step together, so "
        "that a costly module keeps up; auglocal and dgl, lossless",
    )
    regime: Literal["lossless", "asynchronous"] = Field(
        "lossless",
        description="lossless: each batch once and in order, bits as in one process; asynchronous: each worker at its "
        "own pace on the batches of a ring buffer, which is not reproducible between processes",
    )
    queue: PositiveInt = Field(
        4, description="batches that may be between two workers; then the faster one waits; lossless"
    )
    buffer: PositiveInt = Field(4, description="batches of the ring buffer before each worker; asynchronous")
    max_reuse: NonNegativeInt | None = Field(
        None, description="times that a batch may be used again, null without limit; asynchronous"
    )
    slowdown: dict[NonNegativeInt, PositiveFloat] = Field(
        {}, description="worker: how much slower it is, on the clock of an asynchronous run in one process"
    )
    steps: PositiveInt = Field(100, description="batches that every module trains on")
    batch_size: PositiveInt = Field(32, description="examples of a batch")
    optimizer: Optimizer = Field(Optimizer(), description="how a step moves a module's weights; one for each module")
    learning_rate: LearningRate = Field(LearningRate(), description="its change with the number of the batch")
    clip_value: PositiveFloat | None = Field(None, description=CLIP_VALUE)
    gradient_noise: GradientNoise | None = Field(None, description=NOISE)
    memory: Memory | None = Field(
        None, description="activations wait for backward in 8 bits, e.g. {activations: int8}; null: as they are"
    )
    restarts: NonNegativeInt = Field(
        2, description="times that lost workers are started again from the last checkpoint"
    )
    recovery: Literal["together", "alone"] = Field(
        "together",
        description="when a worker is lost: together, all start again; alone, only that one does, and the others hold "
        "what they sent since the last checkpoint; lossless",
    )

    def rule_arguments(self) -> dict[str, Any]:
        """Return what `strategies.local.rule` is called with."""
        return {"name": self.rule.name, **self.rule.arguments(self.modules)}

    @property
    def num_ranks(self) -> int:
        return sum(self.processes)

    @property
    def replaces(self) -> bool:
        return self.recovery == "alone"

    @property
    def processes(self) -> tuple[int, ...]:
        """Processes of each worker."""
        return tuple(self.replicas.get(worker, 1) for worker in range(self.modules))
