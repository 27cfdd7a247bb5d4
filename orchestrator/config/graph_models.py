"""Models of a graph's vertices, in the `model:` section: they train on a whole graph, which only `graph-pipeline` does.

Left out: `pretrain`, for what was learned of one graph's vertices says nothing of another's features.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from annotated_types import Le
from pydantic import Field

from orchestrator.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, Rate, Section, Text

Depth = Annotated[PositiveInt, Le(1000)]


class GraphModelSection(Section):
    """What every graph model has."""

    pretrain: ClassVar[None] = None

    dtype: Literal["float32", "float64"] = Field("float32", description="type of weights and features")
    dropout: Rate = Field(0.5, description="probability of dropping a number that goes into a layer in training")
    weights: Text | None = Field(
        None, description="what the model begins with: a .pt or .safetensors file, or a run; null: drawn by the seed"
    )


class Gcn(GraphModelSection):
    """The graph convolutional network of Kipf and Welling; deep ones lose accuracy."""

    name: Literal["gcn"]
    layers: Depth = Field(2, description="number of convolutions")
    hidden: PositiveInt = Field(16, description="width of every layer but the last")


class Sage(GraphModelSection):
    """GraphSAGE: the mean of all neighbours beside the vertex itself; deep ones lose accuracy."""

    name: Literal["sage"]
    layers: Depth = Field(2, description="number of convolutions")
    hidden: PositiveInt = Field(64, description="width of every layer but the last")


class Gcnii(GraphModelSection):
    """GCNII: deep, each layer reminded of the first one's rows."""

    name: Literal["gcnii"]
    layers: Depth = Field(32, description="number of convolutions, between two affine layers")
    hidden: PositiveInt = Field(64, description="width of every layer but the last")
    alpha: Rate = Field(0.1, description="share of the first layer's rows in every layer's input")
    theta: PositiveFloat = Field(0.5, description="the paper's lambda: how far layers are from the identity")
    dense_decay: NonNegativeFloat = Field(
        0.05,
        description="weight decay of the two affine layers, in parts of the optimizer's; the paper's is 0.01 x 0.05",
    )


class ResGcn(GraphModelSection):
    """ResGCN+: deep, of residual blocks that normalise, then aggregate by the mean."""

    name: Literal["resgcn"]
    layers: Depth = Field(32, description="number of blocks, between two affine layers")
    hidden: PositiveInt = Field(64, description="width of the residual stream")


class Gat(GraphModelSection):
    """Graph attention; keeps a row in memory for every edge."""

    name: Literal["gat"]
    layers: Depth = Field(2, description="number of attention layers")
    hidden: PositiveInt = Field(8, description="width of one head, in every layer but the last")
    heads: PositiveInt = Field(8, description="attention heads of every layer but the last")
    output_heads: PositiveInt = Field(1, description="attention heads of the last layer, whose mean is taken")
    dropout: Rate = Field(
        0.6, description="probability of dropping a number that goes into a layer, or an attention weight, in training"
    )
