"""The `rule:` section of local learning: what a module's loss is.

A section's fields beside `name` are the arguments of the rule of that name in `strategies.local`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Discriminator, Field, Tag

from orchestrator.config.fields import NonNegativeInt, PositiveInt, Section

UpToOne = Annotated[float, Ge(0), Le(1)]


class _Rule(Section):
    name: str

    def arguments(self, num_modules: int) -> dict[str, Any]:
        """Return the rule's arguments, as plain values.

        Args:
            num_modules: for rules that take a number of modules and are not told one.
        """
        told = self.model_dump(exclude={"name"})
        if "modules" in told and told["modules"] is None:
            told["modules"] = num_modules
        return told

    def alone(self) -> dict[str, Any]:
        """Return the arguments where one process has all modules: as many as the rule's paper has."""
        told = self.model_dump(exclude={"name"})
        if told.get("modules", 1) is None:
            told["modules"] = "paper" if self.name == "auglocal" else "each"
        return told


class AugLocal(_Rule):
    """An auxiliary network of layers like the model's own later ones, spread evenly."""

    name: Literal["auglocal"]
    depth: PositiveInt = Field(2, description="units of the deepest auxiliary network, d")
    min_depth: PositiveInt = Field(1, description="units of the shallowest")
    decay: UpToOne = Field(0.5, description="how far depths fall towards min_depth; 0: one depth everywhere")
    modules: PositiveInt | Literal["paper", "each"] | None = Field(
        None, description="null: one a worker, cut by cost; paper: as many as units less depth; each: one a unit"
    )


class Dgl(_Rule):
    """Decoupled greedy learning: a small network at each module's end."""

    name: Literal["dgl"]
    hidden: NonNegativeInt = Field(2, description="hidden layers of an auxiliary network")
    modules: PositiveInt | Literal["each"] | None = Field(
        None, description="null: one a worker, cut by cost; each: one a unit"
    )


class PredSim(_Rule):
    """Labels predicted from a module's end, and examples of a class made alike there."""

    name: Literal["predsim"]
    beta: UpToOne = Field(0.99, description="share of the similarity loss")
    features: PositiveInt = Field(4096, description="most numbers an image is pooled to before labels are predicted")
    modules: PositiveInt | Literal["each"] | None = Field(
        None, description="null: one a worker, cut by cost; each: one a unit"
    )


def by_name(value: Any) -> str | None:
    """Return which rule a section is."""
    return value.get("name") if isinstance(value, dict) else getattr(value, "name", None)


LocalRule = Annotated[
    Annotated[AugLocal, Tag("auglocal")] | Annotated[Dgl, Tag("dgl")] | Annotated[PredSim, Tag("predsim")],
    Discriminator(by_name),
]
