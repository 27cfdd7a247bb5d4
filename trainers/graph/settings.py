"""What every rank of a graph pipeline is told, in plain values; each works out its own part from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from strategies.graph.order import chunk_order
from strategies.pipeline import Action, Placement, gpipe, placement
from strategies.seeds import integer
from trainers.gradients import Shaping


class Settings(NamedTuple):
    """The training of a graph network.

    Args:
        model: the experiment's `model` section. seed: the run's. model_seed: the model's own.
        stages, ways: ranks are `ways * stage + way`. slots: chunks of each way, one after the other in an epoch.
        chunking: how vertices become chunks; see `strategies.graph.layout`.
        layers: how many layers each stage has.
        shuffle: whether chunks come in a new order each epoch.
        refresh: epochs between two moves of the history; 1: it is the epoch before; 0: there is none, rows that are
            not known yet count as zero.
        correction: what gradients that cross chunks are multiplied by.
        recompute: compute what lies between aggregations again in backward.
        kernel: of the sparse products; see `kernels.Matrix`.
        optimizer, learning_rate, clip_norm: as in a pipeline.
        memory: how activations are kept, see `trainers.activations`; None as they are.
        epochs: of the whole run. patience: evaluations without a better one after which the run ends; None never.
        clip_value, gradient_noise: see `trainers.gradients`.
    """

    model: Mapping[str, Any]
    seed: int
    model_seed: int
    stages: int
    ways: int
    slots: int
    chunking: str
    layers: tuple[int, ...]
    shuffle: bool
    refresh: int
    correction: float
    recompute: bool
    kernel: str
    optimizer: Mapping[str, Any]
    learning_rate: Mapping[str, Any]
    clip_norm: float | None
    epochs: int
    patience: int | None
    memory: Mapping[str, Any] | None = None
    clip_value: float | None = None
    gradient_noise: Mapping[str, Any] | None = None

    @property
    def shaping(self) -> Shaping:
        """What is done to gradients."""
        return Shaping.of(self.clip_value, self.gradient_noise, self.seed)

    @property
    def placement(self) -> Placement:
        """Which positions of the model each stage holds: one each."""
        return placement("gpipe", self.stages)

    @property
    def layout_seed(self) -> int:
        """What the cut of the graph is drawn from."""
        return integer(self.seed, "layout")

    def actions(self, stage: int, epoch: int) -> list[Action]:
        """Return what a stage does in an epoch (from 1): all chunks forward in the epoch's order, then back.

        Source: GNNPipe's training loop: backward visits the chunks in the reverse of the forward order, so that
        gradients of those that read a chunk's fresh rows are there when its own backward begins.
        """
        order = chunk_order(self.seed, epoch, self.slots, self.shuffle)
        actions = gpipe(self.stages, self.slots)[stage]
        return [action._replace(microbatch=int(order[action.microbatch])) for action in actions]
