"""The examples of several clients, one after another in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainers.data.base import LANGUAGE_MODEL, Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, Task, needed

_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


class Block(NamedTuple):
    """Clients' examples end to end.

    Args:
        chosen: of each client the examples of its steps, where they have been drawn before and only examples that steps
            see are here; `None` for a client that draws for itself, and nothing where all do.

    Shapes: `x [N, ...]`, `y [N]` or for tokens `[N, T]`, `sizes [C]` adding up to N.
    """

    x: Tensor
    y: Tensor
    sizes: tuple[int, ...]
    chosen: tuple[Sequence[Tensor] | None, ...] = ()

    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """Return each client's examples, as views."""
        sizes = list(self.sizes)
        return list(zip(self.x.split(sizes), self.y.split(sizes), strict=True))

    def cut(self, start: int, stop: int) -> Block:
        """Return the block of the clients `start:stop`, as a view."""
        first, last = sum(self.sizes[:start]), sum(self.sizes[:stop])
        return Block(self.x[first:last], self.y[first:last], self.sizes[start:stop], self.chosen[start:stop])


def joined(parts: Sequence[tuple[Tensor, Tensor]]) -> Block:
    """Return the block of clients whose examples are given one by one."""
    return Block(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), tuple(len(x) for x, _ in parts))


def gather(
    dataset: Dataset,
    tasks: Sequence[Task],
    rows: Sequence[np.ndarray],
    settings: LocalSettings,
    dtype: torch.dtype,
    device: torch.device,
    *,
    run_seed: int,
) -> Block:
    """Read the examples that clients' steps see, all at once: one indexing and one conversion, not one a client.

    Args:
        rows: of each task's client.
    """
    seen = [needed(own, settings, task, run_seed) for task, own in zip(tasks, rows, strict=True)]
    rows = [own for own, _ in seen]
    chosen = tuple(steps for _, steps in seen)
    index = np.concatenate(rows)
    taken = np.take(dataset.train_x, index, axis=0)
    if dataset.task != LANGUAGE_MODEL and taken.dtype == _FLOATS.get(dtype):
        x = torch.from_numpy(taken).reshape(len(taken), *dataset.input_shape)  # `to_tensor` would copy once more
    else:
        x = to_tensor(taken, dataset, dtype)
    y = to_labels(np.take(dataset.train_y, index, axis=0))
    return Block(x.to(device), y.to(device), tuple(len(each) for each in rows), chosen)
