"""Activations in 8 bits for a model that one process runs as a whole, in one line around its forward pass.

    saving = Saving(memory, model, seed)           memory None: nothing is done, and it costs nothing
    with saving(step, batch, inputs):
        loss = criterion(model(inputs), targets)
    loss.backward()
    saving.commit()                                once a step

Left out: what an own checkpointing of activations computes again in backward, where no hook of this is in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from strategies.seeds import integer
from trainers.activations.packed import Piece
from trainers.activations.ranges import SUFFIX, Trees, export_running, restore_running
from trainers.activations.saver import Saver


class Saving:
    """What a whole model keeps.

    Args:
        memory: the experiment's section, or None. seed: the run's. replica: which of the processes that share a
            batch; each has seen other examples, and remembers ranges of its own. piece_of: see `Saver`.
    """

    def __init__(
        self,
        memory: Mapping[str, Any] | None,
        model: nn.Module,
        seed: int,
        replica: int = 0,
        piece_of: Callable[[Tensor], Piece] = Piece,
    ) -> None:
        self._seed, self._replica = seed, replica
        self._suffix = f"{SUFFIX}{replica}" if replica else ""
        self.saver = None if memory is None else Saver(memory, {0: ("", model)}, parts=True, piece_of=piece_of)

    @contextmanager
    def __call__(self, step: int, batch: int, *inputs: Tensor) -> Iterator[None]:
        """Keep what is saved within.

        Args:
            step: from 1. batch: which of those that the step accumulates, from 0. inputs: of the model.
        """
        if self.saver is None:
            yield
            return
        seed = integer(self._seed, "activations", step, batch, self._replica)
        with self.saver.microbatch(0, seed), self.saver.layer(0, inputs):
            yield

    def commit(self) -> None:
        """End a step: ranges move."""
        if self.saver is not None:
            self.saver.commit()

    def export(self, only: Callable[[str], bool] | None = None) -> Trees:
        """Return trees `memory.alpha` and `memory.beta`, this replica's part of a state; of some places only."""
        return {} if self.saver is None else export_running(self.saver, self._suffix, only)

    def restore(self, trees: Trees) -> None:
        """Take what this replica remembered, or else the first one, out of a whole state."""
        if self.saver is not None:
            restore_running(self.saver, trees, self._suffix)
