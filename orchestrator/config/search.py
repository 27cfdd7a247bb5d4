"""The `search:` section of an experiment file: which fields Ray Tune varies, where it looks, and for what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Discriminator, Field, Tag, field_validator

from orchestrator.config.fields import (
    AnyFloat,
    AnyInt,
    AtLeastTwo,
    Expected,
    PositiveFloat,
    PositiveInt,
    Section,
    UpToHalf,
)

METRICS = (
    "test/accuracy", "test/loss", "train/loss", "comm/uplink_bytes", "comm/downlink_bytes", "time/round_s",
    "time/compute_s", "time/wire_s", "time/wait_s", "time/evaluate_s", "train/num_examples", "train/num_clients",
    "train/num_steps", "train/staleness", "train/num_lost", "clients/accuracy", "clients/accuracy_lowest_tenth",
    "clients/loss", "clients/num_evaluated", "time/step_s", "comm/boundary_bytes",
)  # fmt: skip
"""Every metric that a run records."""

GRAPH_METRICS = (
    "train/accuracy", "val/accuracy", "val/loss", "best/val_accuracy", "best/test_accuracy", "comm/exchange_bytes",
)  # fmt: skip
"""Those that only a run on a graph records besides."""


def _ascending(bounds: list[Any]) -> list[Any]:
    low, high = bounds
    if not low < high:
        raise ValueError(f"[low, high] with low < high, such as [{high}, {low}]" if low > high else "low < high")
    return bounds


class Choice(Section):
    """One of a list, drawn uniformly."""

    choice: Annotated[list[Any], MinLen(1)] = Field(description="the values; drawn uniformly")


class Uniform(Section):
    """A number from an interval, drawn uniformly."""

    uniform: Annotated[list[AnyFloat], Field(min_length=2, max_length=2), Expected("[low, high]")] = Field(
        description="the interval, as [low, high]"
    )
    _check = field_validator("uniform")(_ascending)


class LogUniform(Section):
    """A number from an interval above 0, its logarithm drawn uniformly."""

    loguniform: Annotated[list[PositiveFloat], Field(min_length=2, max_length=2), Expected("[low, high] above 0")] = (
        Field(description="the interval, as [low, high]")
    )
    _check = field_validator("loguniform")(_ascending)


class RandInt(Section):
    """A whole number from an interval, drawn uniformly."""

    randint: Annotated[list[AnyInt], Field(min_length=2, max_length=2), Expected("[low, high] of whole numbers")] = (
        Field(description="the interval, as [low, high]; high itself is not drawn")
    )
    _check = field_validator("randint")(_ascending)


class Grid(Section):
    """Every value of a list."""

    grid: Annotated[list[Any], MinLen(1)] = Field(description="the values; every combination of grids is tried")


def _only_key(value: Any) -> str | None:
    if isinstance(value, dict):
        return next((key for key in value if key in DOMAINS), next(iter(value), None))
    return type(value).__name__.lower() if isinstance(value, Section) else None


DOMAINS = ("choice", "uniform", "loguniform", "randint", "grid")

Domain = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[RandInt, Tag("randint")]
    | Annotated[Grid, Tag("grid")],
    Discriminator(_only_key),
]


class RandomSearch(Section):
    """Independent draws; every trial runs to its end."""

    name: Literal["random"] = "random"


class Asha(Section):
    """Independent draws; poor trials are stopped early (asynchronous successive halving)."""

    name: Literal["asha"]
    grace_rounds: PositiveInt = Field(1, description="rounds that every trial gets")
    reduction_factor: AtLeastTwo = Field(4, description="one trial in this many goes on at each halving")


class Pbt(Section):
    """Poor trials copy good ones and vary their fields while they train (population-based training)."""

    name: Literal["pbt"]
    interval_rounds: PositiveInt = Field(5, description="rounds between copies")
    quantile: UpToHalf = Field(0.25, description="part of the trials that copy, and part that is copied")


class Optuna(Section):
    """Draws guided by earlier trials (tree-structured Parzen estimator); needs the package optuna."""

    name: Literal["optuna"]


class Search(Section):
    """A search over fields of this file, run by `orchestrator tune`."""

    space: Annotated[dict[str, Domain], MinLen(1)] = Field(description="dotted field -> where to look")
    algorithm: Annotated[RandomSearch | Asha | Pbt | Optuna, Field(discriminator="name")] = Field(
        RandomSearch(), description="how trials are drawn and stopped"
    )
    metric: str = Field("test/accuracy", description="what is compared, as scope/name")
    mode: Literal["max", "min"] = Field("max", description="whether more or less is better")
    trials: PositiveInt = Field(8, description="samples of the space; a grid is repeated this often")
    concurrent: PositiveInt | None = Field(None, description="trials at once; default what fits")
