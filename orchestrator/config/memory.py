"""The `memory:` section of every gang: which activations wait for backward in 8 bits, and how they are rounded."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field, field_validator

from orchestrator.config.fields import PositiveInt, Section, Text

Kept = Literal["int8", "none"]


class Memory(Section):
    """What is kept of activations until backward. Forward passes, evaluation and what is sent stay exact."""

    activations: Literal["int8"] = Field("int8", description="8 bits a number, in a range for each group")
    groups: PositiveInt | Literal["heads", "channels"] = Field(
        8,
        description="ranges of one tensor: so many, over its heads or else its channels; heads: as many as the layer "
        "has attention heads; channels: one each",
    )
    layers: Text | Annotated[dict[Text, Kept], MinLen(1)] | None = Field(
        None,
        description="pattern searched for in module names, such as blocks.3.attention: 8 bits there, elsewhere as it "
        "is; or patterns with int8 or none, of which the first one found counts, and int8 elsewhere; null: everywhere",
    )
    min_elements: PositiveInt = Field(1024, description="tensors of fewer numbers are kept as they are")
    rounding: Literal["stochastic", "nearest"] = Field(
        "stochastic", description="stochastic: right in the mean; nearest: smaller errors that do not cancel"
    )
    range: Literal["running", "own"] = Field(
        "running",
        description="running: a moving mean over steps, what lies outside is cut; own: of each tensor, nothing is cut",
    )

    @field_validator("layers")
    @classmethod
    def _patterns(cls, layers: str | dict[str, Kept] | None) -> str | dict[str, Kept] | None:
        for pattern in [layers] if isinstance(layers, str) else layers or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"regular expressions, but {pattern!r} is none: {error}") from error
        return layers


def plain(memory: Memory | None) -> dict[str, object] | None:
    """Return the section as what `trainers.activations` takes."""
    return None if memory is None else memory.model_dump()
