"""A stage's layers on one chunk of the graph after another: a pipeline's chunk whose layers may ask for neighbours."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from trainers.activations import Packed, Saver
from trainers.graph.chunked import ChunkView, Dry
from trainers.graph.layers import GraphLayer
from trainers.pipeline.chunk import Carry, Chunk, LayerFailed, Run
from trainers.pipeline.layers import Layer

UNLABELLED = -1
"""The target of a vertex that is not trained on."""


class GraphChunk(Chunk):
    """Consecutive layers of a graph network.

    Args:
        view: what they see of the graph. The micro-batches of `Chunk` are the graph's slots here.
        saver: as `Chunk`'s.
    """

    def __init__(
        self, layers: Sequence[Layer], position: int, num_positions: int, view: ChunkView, saver: Saver | None = None
    ) -> None:
        loss = cross_entropy if position == num_positions - 1 else None
        super().__init__(layers, position, num_positions, loss=loss, saver=saver)
        self.view: ChunkView = view
        if saver is not None:
            view.lasting = saver.leave
            if view.features is not None:
                saver.leave(view.features)
        self._sees: ChunkView | Dry = view

    def probe(self, carry: Carry, *, training: bool, followed: Collection[str] | None = None) -> tuple[Carry, Carry]:
        """Run two vertices without a graph, to see what comes out."""
        self._sees = Dry()
        try:
            return super().probe(carry, training=training, followed=followed)
        finally:
            self._sees = self.view

    def _through(self, carry: Carry, run: Run | None) -> Carry:
        if isinstance(self._sees, ChunkView):
            try:
                self._sees.enter(None if run is None else run.microbatch)
            except RuntimeError as error:
                raise LayerFailed(f"the first layer was given the input features: {error}") from error
        return super()._through(carry, run)

    def _kept(self, saver: Saver, carry: Carry) -> dict[str, Packed]:
        """Return what is kept for a second forward; the features are there anyway, and the view knows them by place."""
        return dict(carry) if self.is_first else super()._kept(saver, carry)

    def _call(self, layer: Layer, arguments: Sequence[Tensor]) -> Any:
        if isinstance(self._sees, ChunkView):
            self._sees.at(layer.index)
        if isinstance(layer.module, GraphLayer):
            return layer.module(*arguments, self._sees)
        return layer.module(*arguments)


def cross_entropy(returned: Any, targets: Tensor) -> Tensor:
    """Return the sum of cross-entropies over the vertices that are trained on."""
    return functional.cross_entropy(returned, targets, ignore_index=UNLABELLED, reduction="sum")
