"""The `optimizer:` section that every strategy has."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from orchestrator.config.fields import NonNegativeFloat, PositiveFloat, Rate, Section, Text


class Optimizer(Section):
    """Any optimizer of torch.optim, or one of the project's own."""

    name: Text = Field("sgd", description="any class of torch.optim, in lower case; or lamb, lars")
    lr: PositiveFloat = Field(0.1, description="learning rate")
    momentum: Rate | None = Field(None, description="null leaves torch's own default")
    weight_decay: NonNegativeFloat | None = Field(None, description="null leaves torch's own default")
    kwargs: dict[str, Any] = Field({}, description="further arguments of the class")
