"""The `aggregator:` section: how the vectors of many senders become one, whatever some of them send.

A section's fields beside `name`, `num_byzantine` and `pre` are the arguments of the rule of that name in
`strategies.robust`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from orchestrator.config.fields import ByName, NonNegativeInt, PositiveFloat, PositiveInt, Section

# ---------------------------------------------------------------------------------------------- pre-aggregators


class Nnm(Section):
    """Nearest-neighbour mixing: every vector becomes the mean of those nearest to it."""

    name: Literal["nnm"]


class Bucketing(Section):
    """Means of a few vectors each, drawn anew every time, take their place."""

    name: Literal["bucketing"]
    bucket_size: PositiveInt = Field(2, description="vectors that become one")


class Clipping(Section):
    """No vector is longer than a given length."""

    name: Literal["clipping"]
    radius: PositiveFloat = Field(2.0, description="largest length")


class Arc(Section):
    """Adaptive clipping: the longest vectors are shortened to the next longest."""

    name: Literal["arc"]
    counting: Literal["exact", "byzfl"] = Field("exact", description="how many: as the paper counts, or as ByzFL")


PreAggregator = Annotated[Nnm | Bucketing | Clipping | Arc, Field(discriminator="name")]

# ------------------------------------------------------------------------------------------------- aggregators


class _Rule(Section):
    name: str
    num_byzantine: NonNegativeInt | None = Field(
        None, description="attackers to withstand; null: as many as strategy.attack brings"
    )
    pre: list[PreAggregator] = Field([], description="what vectors pass before, in order")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the rule, as plain values."""
        return self.model_dump(exclude={"name", "num_byzantine", "pre", "root_examples"})


class Mean(_Rule):
    """The weighted mean of the updates."""

    name: Literal["mean"] = "mean"


class Median(_Rule):
    """The median of every coordinate."""

    name: Literal["median"]


class TrimmedMean(_Rule):
    """The mean of every coordinate without its largest and smallest values."""

    name: Literal["trimmed_mean"]


class Krum(_Rule):
    """The vector that is nearest to its neighbours."""

    name: Literal["krum"]
    neighbors: Literal["blanchard", "byzfl"] = Field("blanchard", description="how many: the paper's, or ByzFL's")


class MultiKrum(_Rule):
    """The mean of the vectors that are nearest to their neighbours."""

    name: Literal["multi_krum"]
    num_selected: PositiveInt | None = Field(None, description="how many are averaged; null: all but the attackers")
    neighbors: Literal["blanchard", "byzfl"] = Field("blanchard", description="how many: the paper's, or ByzFL's")


class Bulyan(_Rule):
    """Krum again and again, then a trimmed mean around the median."""

    name: Literal["bulyan"]
    ties: Literal["next", "first"] = Field("next", description="whom Krum picks of equally good vectors")


class GeometricMedian(_Rule):
    """The point with the least sum of distances, by smoothed Weiszfeld steps."""

    name: Literal["geometric_median"]
    smoothing: PositiveFloat = Field(0.1, description="distance below which a vector counts no more than others")
    num_iterations: PositiveInt = Field(3, description="steps")


class CenteredClipping(_Rule):
    """Differences from the last aggregate, clipped and averaged."""

    name: Literal["centered_clipping"]
    radius: PositiveFloat = Field(100.0, description="longest difference")
    num_iterations: PositiveInt = Field(1, description="steps")


class NormClipping(_Rule):
    """The mean of vectors that are clipped to a given length."""

    name: Literal["norm_clipping"]
    radius: PositiveFloat = Field(2.0, description="largest length")


class Mda(_Rule):
    """Minimum-diameter averaging: the mean of the tightest subset."""

    name: Literal["mda"]
    ties: Literal["central", "first"] = Field("central", description="which of equally tight subsets")


class Meamed(_Rule):
    """The mean of the values of every coordinate that are nearest to its median."""

    name: Literal["meamed"]


class Monna(_Rule):
    """The mean of the vectors nearest to one's own; at a server, nearest to the first client's."""

    name: Literal["monna"]


class Caf(_Rule):
    """Covariance-bound agnostic filter: weights fall along the direction of most variance."""

    name: Literal["caf"]
    variant: Literal["exact", "byzfl"] = Field("exact", description="the exact direction, or ByzFL's power method")


class Smea(_Rule):
    """Smallest maximum eigenvalue averaging: the mean of the subset of least variance in any direction."""

    name: Literal["smea"]
    variant: Literal["exact", "byzfl"] = Field("exact", description="exact eigenvalues, or ByzFL's power method")


class Dnc(_Rule):
    """Divide and conquer: outliers along the main direction of some coordinates are left out."""

    name: Literal["dnc"]
    num_iterations: PositiveInt = Field(1, description="draws of coordinates")
    num_columns: PositiveInt = Field(10_000, description="coordinates of a draw")
    factor: PositiveFloat = Field(1.0, description="vectors left out in a draw, as a multiple of the attackers")


class FlTrust(_Rule):
    """Updates count by how well they point where the server's own small data does."""

    name: Literal["fltrust"]
    root_examples: PositiveInt = Field(100, description="training examples that the server owns, drawn by the seed")


class SignMajority(_Rule):
    """The sign of every coordinate that most agree on."""

    name: Literal["sign_majority"]
    scale: PositiveFloat = Field(1.0, description="size of every coordinate of the result")


Aggregator = Annotated[
    Annotated[Mean, Tag("mean")]
    | Annotated[Median, Tag("median")]
    | Annotated[TrimmedMean, Tag("trimmed_mean")]
    | Annotated[Krum, Tag("krum")]
    | Annotated[MultiKrum, Tag("multi_krum")]
    | Annotated[Bulyan, Tag("bulyan")]
    | Annotated[GeometricMedian, Tag("geometric_median")]
    | Annotated[CenteredClipping, Tag("centered_clipping")]
    | Annotated[NormClipping, Tag("norm_clipping")]
    | Annotated[Mda, Tag("mda")]
    | Annotated[Meamed, Tag("meamed")]
    | Annotated[Monna, Tag("monna")]
    | Annotated[Caf, Tag("caf")]
    | Annotated[Smea, Tag("smea")]
    | Annotated[Dnc, Tag("dnc")]
    | Annotated[FlTrust, Tag("fltrust")]
    | Annotated[SignMajority, Tag("sign_majority")],
    Discriminator(ByName("mean").tag),
]
