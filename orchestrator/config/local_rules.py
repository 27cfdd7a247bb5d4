"""The `rule:` section of local learning: what a module's loss is.

A section's fields beside `name` are the arguments of the rule of that name in `strategies.local`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Discriminator, Field, Tag

from orchestrator.config.fields import ByName, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section

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
    modules: PositiveInt | Literal["paper", "each"] | list[PositiveInt] | None = Field(
        None,
        description="null: one a worker, cut by cost; paper: as many as units less depth; each: one a unit; a list: "
        "units of each",
    )


class Dgl(_Rule):
    """Decoupled greedy learning: a small network at each module's end."""

    name: Literal["dgl"]
    hidden: NonNegativeInt = Field(2, description="hidden layers of an auxiliary network")
    modules: PositiveInt | Literal["each"] | list[PositiveInt] | None = Field(
        None, description="null: one a worker, cut by cost; each: one a unit; a list: units of each"
    )


class PredSim(_Rule):
    """Labels predicted from a module's end, and examples of a class made alike there."""

    name: Literal["predsim"]
    beta: UpToOne = Field(0.99, description="share of the similarity loss")
    features: PositiveInt = Field(4096, description="most numbers an image is pooled to before labels are predicted")
    modules: PositiveInt | Literal["each"] | list[PositiveInt] | None = Field(
        None, description="null: one a worker, cut by cost; each: one a unit; a list: units of each"
    )


class TpSgd(_Rule):
    """Distance from a fixed random image of the label, layer by layer."""

    name: Literal["tpsgd"]
    loss: Literal["l1", "l2"] = Field("l2", description="whether distances count by their sign or as they are")
    maps: Literal["mean", "each"] = Field(
        "mean", description="what of a feature map meets the target: mean, each place"
    )


class ForwardForward(_Rule):
    """Goodness of examples with their true label above that of examples with a wrong one."""

    name: Literal["forward-forward"]
    threshold: PositiveFloat | None = Field(None, description="goodness between the two; null: a layer's size")
    peer: NonNegativeFloat = Field(0.03, description="weight of drawing units to the mean activity of their layer")
    answer: Literal["goodness", "softmax"] = Field("goodness", description="what tells the class in the end")


class PhyLL(_Rule):
    """As forward-forward, by the angle to a fixed vector, with layers that need no derivative."""

    name: Literal["phyll"]
    theta: PositiveFloat = Field(4.0, description="how steep the loss is")
    inner_steps: PositiveInt = Field(10, description="optimizer steps of a layer on each batch")


class CounterCurrent(_Rule):
    """Agreement with a second network, which brings the classes down from layer to layer."""

    name: Literal["counter-current"]
    weight: PositiveFloat | None = Field(None, description="of the agreement; null: 0.5 for vectors, 1 for images")
    alike: NonNegativeFloat = Field(0.5, description="weight of what sets examples apart; images only")
    clip: NonNegativeFloat | None = Field(
        None, description="largest norm of each network's gradient in a module; 0: none; null: 1 for vectors, else 0.3"
    )
    centralise: bool | None = Field(None, description="take means off gradients; null: for images only")


class NoProp(_Rule):
    """Blocks that each learn to clean a noisy label, given the input, and hear nothing from each other."""

    name: Literal["noprop"]
    blocks: PositiveInt = Field(10, description="how many, which are the modules; each has the model's layers")
    eta: PositiveFloat = Field(0.1, description="weight of the cleaning loss")
    hidden: PositiveInt = Field(256, description="width of a block's hidden layer")
    dim: PositiveInt | None = Field(None, description="numbers of a class's embedding; null: one-hot")


LocalRule = Annotated[
    Annotated[AugLocal, Tag("auglocal")]
    | Annotated[Dgl, Tag("dgl")]
    | Annotated[PredSim, Tag("predsim")]
    | Annotated[TpSgd, Tag("tpsgd")]
    | Annotated[ForwardForward, Tag("forward-forward")]
    | Annotated[PhyLL, Tag("phyll")]
    | Annotated[CounterCurrent, Tag("counter-current")]
    | Annotated[NoProp, Tag("noprop")],
    Discriminator(ByName().tag),
]
