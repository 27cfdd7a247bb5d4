"""The `data:` sections of graphs, for the strategies that train on a whole graph at once."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Le
from pydantic import Field, model_validator

from orchestrator.config.fields import (
    AnyFloat,
    AtLeastTwo,
    Columns,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    Text,
)  # fmt: skip

Normalize = Literal["rows", "none"]


class GraphSection(Section):
    """What every kind of data has that is a graph and nothing else: no partition and no limit."""


class _Listed(GraphSection):
    """Edges that somebody has listed."""

    undirected: bool = Field(True, description="add the opposite of every edge")
    duplicates: Literal["refuse", "drop"] = Field(
        "refuse", description="what becomes of an edge that is listed twice in one direction"
    )
    normalize: Normalize = Field("none", description="rows: divide each row of features by its sum")


class GraphParquet(_Listed):
    """Your own graph: a Parquet table of edges and one of vertices, local or in an object store."""

    name: Literal["graph-parquet"]
    edges: Text = Field(description="a file, a folder, or an object-store URI: a row an edge")
    vertices: Text = Field(description="likewise: a row a vertex")
    src: Text = Field("src", description="column of `edges`: the id that an edge comes from")
    dst: Text = Field("dst", description="column of `edges`: the id that an edge leads to, which aggregates")
    id: Text = Field("id", description="column of `vertices`: whole numbers or text")
    features: Text | Columns = Field("features", description="one column of lists, or several columns of numbers")
    label: Text = Field("label", description="column of the class; null: none, outside of the splits")
    split: Text = Field("split", description="column of train, val or test; null: in none of them")
    train_fraction: Fraction | None = Field(
        None, description="instead of `split`: part of the labelled vertices, drawn by the seed"
    )
    val_fraction: Fraction | None = Field(None, description="likewise, for validation; the rest is for testing")

    @model_validator(mode="after")
    def _both_fractions(self) -> GraphParquet:
        if (self.train_fraction is None) != (self.val_fraction is None):
            raise ValueError("train_fraction and val_fraction go together: give both, or neither and a column split")
        if self.train_fraction is not None and self.val_fraction is not None:
            _leaves_some(self.train_fraction, self.val_fraction)
        return self


class GraphOgb(_Listed):
    """A graph of the Open Graph Benchmark, as downloaded and unzipped: node property prediction, texts only."""

    name: Literal["graph-ogb"]
    path: Text = Field(description="the unzipped folder, which holds raw/ and split/")
    split: Text | None = Field(None, description="folder within split/; null: the only one")


class _Generated(GraphSection):
    """A graph that is made from the seed."""

    vertices: AtLeastTwo = Field(1000, description="number of vertices")
    classes: AtLeastTwo = Field(5, description="number of classes, planted as communities of one size")
    degree: PositiveFloat = Field(10.0, description="mean number of neighbours; edges are vertices x degree")
    within: Annotated[NonNegativeFloat, Le(1)] = Field(
        0.8, description="share of edges that join vertices of one class"
    )
    features: PositiveInt = Field(32, description="numbers of one vertex, around a centre of its class")
    noise: NonNegativeFloat = Field(2.0, description="their standard deviation; centres are about 2.5 from 0")
    train_fraction: Fraction = Field(0.5, description="part of the vertices that is trained on")
    val_fraction: Fraction = Field(0.25, description="part that chooses the model; the rest is for testing")

    @model_validator(mode="after")
    def _fractions(self) -> _Generated:
        _leaves_some(self.train_fraction, self.val_fraction)
        return self


class Sbm(_Generated):
    """A graph of the stochastic block model: neighbours are alike in class, degrees are nearly equal."""

    name: Literal["sbm"]


class PowerLaw(_Generated):
    """A graph with few vertices of high degree and many of low, and classes as communities."""

    name: Literal["power-law"]
    exponent: Annotated[AnyFloat, Gt(2)] = Field(2.5, description="the share of degree k falls as k ^ -exponent")


def _leaves_some(train_fraction: float, val_fraction: float) -> None:
    if train_fraction + val_fraction >= 1:
        raise ValueError(
            f"train_fraction {train_fraction:g} and val_fraction {val_fraction:g} leave nothing for testing: "
            "their sum is below 1"
        )
