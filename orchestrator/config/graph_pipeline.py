"""The `strategy:` section of a graph pipeline: stages of layers, ways of vertices, chunks and their history."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import MinLen
from pydantic import Field

from orchestrator.config.fields import NonNegativeInt, PositiveFloat, PositiveInt, Text
from orchestrator.config.gang import GangSection
from orchestrator.config.gradients import CLIP_VALUE, NOISE, GradientNoise
from orchestrator.config.memory import Memory
from orchestrator.config.optimizer import Optimizer
from orchestrator.config.pipeline import LearningRate


class GraphPipeline(GangSection):
    """A deep graph network on one whole graph: layers cut over stages, vertices over ways, an epoch chunk by chunk."""

    kind: Literal["graph-pipeline"]
    stages: PositiveInt = Field(2, description="processes that the layers are cut over; 1: all layers everywhere")
    ways: PositiveInt = Field(
        1, description="processes that the vertices of each stage are cut over; rows at the cuts are exchanged"
    )
    chunks: PositiveInt | None = Field(
        None,
        description="parts of a way's vertices that follow one another through the stages; null: 4 for each stage, or "
        "1 where there is one stage, which is exact",
    )
    chunking: Literal["metis", "contiguous", "random"] = Field("metis", description="how vertices are cut")
    partition: Literal["time"] | Annotated[list[PositiveInt], MinLen(1)] = Field(
        "time", description="what is balanced over the stages, or the number of layers of each"
    )
    shuffle: bool = Field(True, description="chunks come in a new order each epoch")
    refresh: NonNegativeInt = Field(
        23,
        description="epochs between two moves of the history, the rows that stand for chunks still to come; 1: always "
        "those of the epoch before; 0: none, they count as zero",
    )
    correction: PositiveFloat = Field(
        2.0,
        description="what gradients that cross chunks are multiplied by; 1: those of the rows that were used",
    )
    recompute: bool = Field(False, description="keep only what is aggregated; compute the rest again in backward")
    kernel: Literal["auto", "bag", "csr", "scipy", "scatter"] = Field(
        "auto", description="of the sparse products; auto: a fixed choice by device and dtype"
    )
    graph_folder: Text | None = Field(
        None,
        description="folder that every node sees, where the graph is kept as arrays that ranks map into memory; null: "
        "below storage.root on a local cluster, and else through Ray's object store, one copy a node",
    )
    epochs: PositiveInt = Field(200, description="optimizer steps, each over all training vertices")
    patience: PositiveInt | None = Field(
        None, description="evaluations without a better validation accuracy after which training ends; null: never"
    )
    optimizer: Optimizer = Field(Optimizer(name="adam", lr=0.01), description="how an epoch moves the weights")
    learning_rate: LearningRate = Field(LearningRate(), description="its change with the epoch")
    clip_norm: PositiveFloat | None = Field(None, description="largest norm of an epoch's gradient, over all stages")
    clip_value: PositiveFloat | None = Field(None, description=CLIP_VALUE)
    gradient_noise: GradientNoise | None = Field(None, description=NOISE)
    memory: Memory | None = Field(
        None, description="activations wait for backward in 8 bits, e.g. {activations: int8}; null: as they are"
    )
    restarts: NonNegativeInt = Field(2, description="times that lost ranks are started again from the last checkpoint")

    @property
    def num_steps(self) -> int:
        return self.epochs

    @property
    def unit(self) -> str:
        """What a step is called."""
        return "epoch"

    @property
    def steps_field(self) -> str:
        """Where `num_steps` is said."""
        return "strategy.epochs"

    @property
    def num_ranks(self) -> int:
        return self.stages * self.ways

    @property
    def slots(self) -> int:
        """Chunks of each way."""
        return self.chunks or (1 if self.stages == 1 else 4 * self.stages)
