"""The `strategy:` section of local learning: a rule, workers that own modules, and how batches pass between them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.config.fields import NonNegativeInt, PositiveInt, Section
from orchestrator.config.local_rules import AugLocal, LocalRule
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.pipeline import LearningRate


class LocalLearning(Section):
    """Modules of one network in processes of their own, each trained by a loss of its own: no gradient crosses."""

    kind: Literal["local-learning"]
    rule: LocalRule = Field(AugLocal(name="auglocal"), description="what a module's loss is")
    modules: PositiveInt = Field(
        2, description="processes; each owns one module, or several in a row where the rule makes more of them"
    )
    queue: PositiveInt = Field(4, description="batches that may be between two workers; then the faster one waits")
    steps: PositiveInt = Field(100, description="batches that every module trains on")
    batch_size: PositiveInt = Field(32, description="examples of a batch")
    optimizer: Optimizer = Field(Optimizer(), description="how a step moves a module's weights; one for each module")
    learning_rate: LearningRate = Field(LearningRate(), description="its change with the number of the batch")
    restarts: NonNegativeInt = Field(
        2, description="times that lost workers are started again from the last checkpoint"
    )

    def rule_arguments(self) -> dict[str, Any]:
        """Return what `strategies.local.rule` is called with."""
        return {"name": self.rule.name, **self.rule.arguments(self.modules)}

    @property
    def num_steps(self) -> int:
        return self.steps

    @property
    def unit(self) -> str:
        """What a step is called."""
        return "step"

    @property
    def steps_field(self) -> str:
        """Where `num_steps` is said."""
        return "strategy.steps"

    @property
    def num_ranks(self) -> int:
        return self.modules
