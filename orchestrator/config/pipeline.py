"""The `strategy:` section of a pipeline: stages, micro-batches, and how each batch trains."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from orchestrator.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Target,
)  # fmt: skip
from orchestrator.config.gang import GangSection
from orchestrator.config.gradients import CLIP_VALUE, NOISE, GradientNoise
from orchestrator.config.memory import Memory
from orchestrator.config.optimizer import Optimizer


class LearningRate(Section):
    """How the learning rate changes with the step."""

    name: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="from the optimizer's rate to `final`"
    )
    warmup_steps: NonNegativeInt = Field(0, description="steps of a linear rise before")
    final: NonNegativeFloat = Field(0.0, description="at the last step, as a part of the optimizer's rate")


class Loss(Section):
    """What is minimised."""

    target: Target | None = Field(
        None, description="function of the model's output and the targets; default cross-entropy"
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the examples of a batch; your function does the same"
    )


class Pipeline(GangSection):
    """Stages of one model in processes of their own, each batch cut into micro-batches that follow one another."""

    kind: Literal["pipeline"]
    stages: PositiveInt = Field(2, description="processes that one copy of the model is cut over")
    microbatches: PositiveInt = Field(8, description="parts of a batch; 4 a stage keep the bubble small")
    schedule: Literal["gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v"] = Field(
        "gpipe", description="the order in which stages do forwards and backwards"
    )
    chunks: PositiveInt = Field(
        2, description="parts of the model on each stage, when the schedule is interleaved; zero-bubble-v has 2"
    )
    replicas: PositiveInt = Field(1, description="pipelines that share each batch and sum their gradients")
    shard_optimizer: bool = Field(
        False, description="replicas of a stage share out what the optimizer remembers (ZeRO stage 1); same bits"
    )
    partition: Literal["time", "parameters"] | Annotated[list[PositiveInt], MinLen(1)] = Field(
        "time", description="what is balanced over the stages, or the number of layers of each"
    )
    recompute: Literal["never", "except-last", "always", "fit"] = Field(
        "never",
        description="micro-batches whose activations are computed again in backward instead of kept; "
        "fit: for each stage as few as `stage_memory` allows",
    )
    stage_memory: PositiveInt | None = Field(
        None, description="bytes that a stage may hold: weights, gradients, optimizer, activations"
    )
    steps: PositiveInt = Field(100, description="optimizer steps")
    batch_size: PositiveInt = Field(32, description="examples of a batch, over all replicas")
    accumulate: PositiveInt = Field(1, description="batches of one optimizer step")
    optimizer: Optimizer = Field(Optimizer(), description="how a step moves the weights")
    learning_rate: LearningRate = Field(LearningRate(), description="its change with the step")
    clip_norm: PositiveFloat | None = Field(None, description="largest norm of a step's gradient, over all stages")
    clip_value: PositiveFloat | None = Field(None, description=CLIP_VALUE)
    gradient_noise: GradientNoise | None = Field(None, description=NOISE)
    loss: Loss = Field(Loss(), description="what is minimised")
    precision: Literal["bf16"] | None = Field(None, description="bf16: layers run under autocast; null: as they are")
    memory: Memory | None = Field(
        None, description="activations wait for backward in 8 bits, e.g. {activations: int8}; null: as they are"
    )
    restarts: NonNegativeInt = Field(2, description="times that lost stages are started again from the last checkpoint")

    @property
    def num_ranks(self) -> int:
        return self.stages * self.replicas

    @property
    def num_positions(self) -> int:
        """Pieces that the model is cut into."""
        from strategies.pipeline import chunks_of

        return self.stages * chunks_of(self.schedule, self.chunks)
