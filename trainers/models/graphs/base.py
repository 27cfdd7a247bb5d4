"""What graph models share: a list of layers, run one after another on a view, and the affine maps at its ends."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor, nn

from trainers.graph.layers import Carry, run
from trainers.graph.view import View
from trainers.models.base import ModelError


class GraphModel(nn.Module):
    """Layers that a pipeline may cut between at any place."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, graph: View) -> Carry:
        """Return logits; shapes: `x [n, F]`, logits `[n, num_classes]`."""
        return run(self.layers, x, graph)

    def pipeline_layers(self) -> list[tuple[str, nn.Module]]:
        """Return every layer."""
        return [(f"layers.{index}", layer) for index, layer in enumerate(self.layers)]


def num_features(model: str, input_shape: tuple[int, ...]) -> int:
    """Return the features of a vertex.

    Raises:
        ModelError: when they are not one row of numbers.
    """
    if len(input_shape) != 1:
        raise ModelError(
            f"model {model} needs a row of features for each vertex, but a vertex has shape {input_shape}",
            "give every vertex one row of numbers",
        )
    return input_shape[0]


def widths(first: int, hidden: int, last: int, layers: int) -> list[tuple[int, int]]:
    """Return the widths before and after each of `layers` layers."""
    return list(pairwise([first, *[hidden] * (layers - 1), last]))


def dense(in_width: int, out_width: int) -> nn.Linear:
    """Return an affine map with Glorot weights and a bias of zero."""
    linear = nn.Linear(in_width, out_width)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
