"""Which epoch's weights are kept: those of the best accuracy on the validation vertices, and when to stop looking.

Every rank hears the same figures and comes to the same verdict; none has to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainers.pipeline.part import Part


class Selection:
    """The best so far.

    Args:
        part: whose weights are kept. patience: evaluations without a better one that are one too many; None: any.
    """

    def __init__(self, part: Part[Any], patience: int | None) -> None:
        self._part, self._patience = part, patience
        self._epoch, self._since = -1, 0
        self._val = self._test = 0.0
        self._best: dict[str, Tensor] = {}

    @property
    def ends(self) -> bool:
        """Whether patience is at its end."""
        return self._patience is not None and self._since >= self._patience

    def take(self, epoch: int, val_accuracy: float, test_accuracy: float) -> dict[str, float]:
        """Note an evaluation; return what is best now."""
        if self._epoch < 0 or val_accuracy > self._val:
            self._epoch, self._since, self._val, self._test = epoch, 0, val_accuracy, test_accuracy
            self._best = {name: tensor.detach().clone() for name, tensor in self._part.floats.items()}
        else:
            self._since += 1
        return {
            "best/epoch": float(self._epoch),
            "best/val_accuracy": self._val,
            "best/test_accuracy": self._test,
        }

    def export(self, *, first: bool) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds: `best`, weights of this part, and by the first stage `selection`."""
        trees = {"best": {name: tensor for name, tensor in self._best.items() if self._part.is_first_use[name]}}
        if first:
            numbers = [float(self._epoch), float(self._since), self._val, self._test]
            trees["selection"] = {"numbers": torch.tensor(numbers, dtype=torch.float64)}
        return trees

    def restore(self, trees: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up where a checkpoint was."""
        if "selection" in trees:
            epoch, since, self._val, self._test = trees["selection"]["numbers"].tolist()
            self._epoch, self._since = int(epoch), int(since)
            self._best = {name: trees["best"][name].clone() for name in self._part.floats if name in trees["best"]}
