"""The `strategy:` section of ZeRO: ranks that each keep a share of what a model's training holds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from orchestrator.config.fields import NonNegativeInt, PositiveFloat, PositiveInt, Text
from orchestrator.config.gang import GangSection
from orchestrator.config.gradients import CLIP_VALUE, NOISE, GradientNoise
from orchestrator.config.memory import Memory
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.pipeline import LearningRate, Loss


class Zero(GangSection):
    """Data-parallel ranks on DeepSpeed ZeRO, which share out optimizer states, gradients and weights."""

    kind: Literal["zero"]
    ranks: PositiveInt = Field(2, description="processes; each trains on its part of every batch")
    stage: Literal[0, 1, 2, 3, "auto"] = Field(
        "auto",
        description="what is shared out among ranks: 0 nothing, 1 optimizer states, 2 gradients too, 3 weights too; "
        "auto: the smallest that fits",
    )
    offload: Literal["none", "cpu", "nvme"] = Field(
        "none", description="where optimizer states, and at stage 3 weights, wait while they are not used"
    )
    nvme_folder: Text | None = Field(None, description="folder on a fast disk of every node, when offload is nvme")
    rank_memory: PositiveInt | None = Field(
        None, description="bytes that a rank may hold, for stage auto; null: its share of its node's memory"
    )
    steps: PositiveInt = Field(100, description="optimizer steps")
    batch_size: PositiveInt = Field(32, description="examples of a batch, over all ranks")
    accumulate: PositiveInt = Field(1, description="batches of one optimizer step")
    optimizer: Optimizer = Field(Optimizer(), description="how a step moves the weights")
    learning_rate: LearningRate = Field(LearningRate(), description="its change with the step")
    clip_norm: PositiveFloat | None = Field(None, description="largest norm of a step's gradient, over all ranks")
    clip_value: PositiveFloat | None = Field(None, description=CLIP_VALUE)
    gradient_noise: GradientNoise | None = Field(None, description=NOISE)
    loss: Loss = Field(Loss(), description="what is minimised")
    precision: Literal["bf16"] | None = Field(
        None, description="bf16: DeepSpeed's, with weights kept in float32 beside; null: the model's own"
    )
    deepspeed: dict[str, Any] | Text = Field(
        {}, description="DeepSpeed's own JSON, or the path of a file with it; passed on as it is"
    )
    memory: Memory | None = Field(
        None, description="activations wait for backward in 8 bits, e.g. {activations: int8}; null: as they are"
    )
    restarts: NonNegativeInt = Field(2, description="times that lost ranks are started again from the last checkpoint")

    @property
    def num_ranks(self) -> int:
        return self.ranks
