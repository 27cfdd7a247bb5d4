"""The `client:` section: what one participant does with its own data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.config.fields import PositiveFloat, PositiveInt, Section
from orchestrator.config.local_rules import LocalRule as AnyRule
from orchestrator.config.optimizer import Optimizer


def _by_name(value: Any) -> Any:
    """Read a rule's name alone as a section."""
    return {"name": value} if isinstance(value, str) else value


LocalRule = Annotated[AnyRule, BeforeValidator(_by_name)]


class Client(Section):
    """What one client does when it takes part."""

    epochs: PositiveInt = Field(1, description="local passes over the client's data")
    steps: PositiveInt | None = Field(None, description="local optimizer steps, in place of epochs")
    batch_size: PositiveInt | Literal["full"] = Field(32, description="examples of one local step")
    optimizer: Optimizer = Field(Optimizer(), description="how a local step moves the weights")
    clip_norm: PositiveFloat | None = Field(None, description="largest gradient norm of a step")
    rule: LocalRule | None = Field(
        None,
        description="a rule of local learning in place of backpropagation, by name or as a section: auglocal, dgl or "
        "predsim; federated only",
    )
    vectorise: Literal["auto", "measured", "loop", "batched"] = Field(
        "auto",
        description="loop trains clients one by one, batched many as one program; auto decides by a fixed rule, "
        "measured by timing both at the start",
    )
