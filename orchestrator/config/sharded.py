"""The `strategy:` section of sharded layouts: a mesh of ranks, and how each parameter lies on it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, field_validator

from orchestrator.config.fields import Expected, NonNegativeInt, PositiveFloat, PositiveInt, Text
from orchestrator.config.gang import GangSection
from orchestrator.config.gradients import CLIP_VALUE, NOISE, GradientNoise
from orchestrator.config.memory import Memory
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.pipeline import LearningRate, Loss


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Placements = Annotated[
    list[Text], MinLen(1), BeforeValidator(_listed), Expected("S(0), S(1), S(0/3), B, or a list of them, one an axis")
]


class Sharded(GangSection):
    """One model over a mesh of ranks: each tensor is split, copied, or a sum, on each axis of the mesh."""

    kind: Literal["sharded"]
    mesh: Annotated[list[PositiveInt], MinLen(1)] = Field([2], description="ranks along each axis")
    placements: Literal["auto"] | dict[Text, Placements] = Field(
        "auto",
        description="pattern of parameters' names: how they lie, `S(0)` split along dimension 0, `S(0/3)` each of "
        "three parts of it, `B` copied; of several axes a list, or the last axis's alone. The first pattern that "
        "matches counts, and what none matches is copied. auto: what sends least",
    )
    batch_axes: list[NonNegativeInt] | None = Field(
        None, description="axes that the examples of a batch are split over; null: those that split no parameter"
    )
    rank_memory: PositiveInt | None = Field(
        None, description="bytes that a rank may hold: weights, gradients, optimizer, activations"
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
    precision: Literal["bf16"] | None = Field(None, description="bf16: the model runs under autocast; null: as it is")
    memory: Memory | None = Field(
        None, description="activations wait for backward in 8 bits, e.g. {activations: int8}; null: as they are"
    )
    restarts: NonNegativeInt = Field(2, description="times that lost ranks are started again from the last checkpoint")

    @field_validator("placements")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        from strategies.sharded import PARTIAL, parse

        for pattern, given in value.items() if isinstance(value, dict) else ():
            for text in given:
                try:
                    placement = parse(text)
                except ValueError as error:
                    raise ValueError(f"{pattern!r}: {error}") from error
                if placement == PARTIAL:
                    raise ValueError(
                        f"{pattern!r}: P is a sum that is still to be added up; a parameter is none: use B"
                    )
        return value

    @property
    def num_ranks(self) -> int:
        return math.prod(self.mesh)

    def patterns(self) -> list[tuple[str, list[str]]]:
        """Return the patterns with one placement an axis; none where the planner is to choose."""
        if not isinstance(self.placements, dict):
            return []
        found = []
        for pattern, given in self.placements.items():
            whole = given if len(given) == len(self.mesh) else ["B"] * (len(self.mesh) - 1) + list(given)
            found.append((pattern, whole))
        return found
