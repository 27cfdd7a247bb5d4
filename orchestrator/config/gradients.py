"""What the `strategy:` sections of gangs say of gradients, between their sum over all ranks and the step."""

from __future__ import annotations

from pydantic import Field

from orchestrator.config.fields import NonNegativeFloat, PositiveFloat, Section

CLIP_VALUE = "largest size of an element of a step's gradient, after `clip_norm`"
NOISE = "noise that is added to clipped gradients, the same on all ranks"


class GradientNoise(Section):
    """Normal noise on every element, of variance `eta / (1 + t)^gamma` at step t, from 0."""

    eta: PositiveFloat = Field(0.01, description="variance at the first step")
    gamma: NonNegativeFloat = Field(0.55, description="how fast the variance falls; 0: not at all")
