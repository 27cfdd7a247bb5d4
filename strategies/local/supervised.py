"""A module that learns from the labels through an auxiliary network: what AugLocal, DGL and PredSim have in common.

    h_k = f_k(sg(h_{k-1}));   loss = criterion(g_k(h_k), y);   backward through g_k and f_k;   send sg(h_k)

They differ in the auxiliary networks g_k and the criterion. The last module has none: its units end in the head, whose
scores meet the labels in a cross-entropy. Auxiliary networks take no part in inference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from strategies.local.base import Carry, LocalModule, LocalRule, drawing, evaluating
from strategies.local.cuts import Auxiliary, balanced_ends
from strategies.local.units import Shape, check_scores, checked, shapes
from strategies.seeds import integer

Criterion = Callable[[Any, Tensor], Tensor]
"""`(what the auxiliary network returned, targets) -> loss`."""
Modules = int | Literal["each"] | Sequence[int]
"""How many modules, cut by cost; `each`, one a unit; or the units of each module, in order, the head left out."""


class Supervised(LocalModule):
    """Consecutive units and the network that judges their output.

    Args:
        units: in order. auxiliary: None for the last module. criterion: of what the auxiliary network returns.
    """

    def __init__(self, units: Sequence[nn.Module], auxiliary: nn.Module | None, criterion: Criterion) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self.auxiliary = auxiliary
        self._criterion = criterion
        self._loss: Tensor | None = None

    def forward(self, carry: Carry, targets: Tensor, seed: int) -> Carry:
        x = carry["h"].detach()
        with torch.enable_grad(), drawing(seed, x.device):
            h = self.units(x)
            judged = h if self.auxiliary is None else self.auxiliary(h)
            self._loss = self._criterion(judged, targets)
        return {"h": h.detach()}

    def learn(self) -> float:
        if self._loss is None:
            raise RuntimeError("learn() has no batch; call forward first, and learn once for it")
        loss, self._loss = self._loss, None
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def infer(self, carry: Carry) -> Carry:
        with evaluating(self):
            return {"h": self.units(carry["h"])}


def build(
    name: str,
    auxiliaries: Callable[[Sequence[nn.Module], Sequence[Shape], int, int], Auxiliary],
    criterion: Criterion,
    modules: int | Callable[[int], Sequence[int]],
) -> LocalRule:
    """Return a rule of this family.

    Args:
        auxiliaries: `(units, the head last, their shapes, num_classes, num_modules) -> Auxiliary`.
        modules: how many, cut where counted multiplications balance them; or `number of units without the head -> the
            last unit of each module but the last`.
    """

    def built(
        units: Sequence[nn.Module], *, num_classes: int, input_shape: Sequence[int], seed: int
    ) -> list[LocalModule]:
        units = checked(units)
        made = shapes(units, input_shape)
        check_scores(units, made, num_classes)
        if isinstance(modules, int):
            auxiliary = auxiliaries(units, made, num_classes, modules)
            with drawing(seed):  # what is drawn to be counted is thrown away
                last = balanced_ends(units, input_shape, made, auxiliary, modules)
        else:
            last = list(modules(len(units) - 1))
            auxiliary = auxiliaries(units, made, num_classes, len(last) + 1)
        found: list[LocalModule] = []
        for index, end in enumerate(last):
            start = last[index - 1] + 1 if index else 0
            with drawing(integer(seed, "auxiliary network", index)):
                network = auxiliary.make(index, end)
            found.append(Supervised(units[start : end + 1], network, criterion))
        rest = units[last[-1] + 1 :] if last else units
        return [*found, Supervised(rest, None, cross_entropy)]

    return LocalRule(name, built, _start, _scores, "forward")


def grouping(modules: Modules) -> int | Callable[[int], Sequence[int]]:
    """Return what `build` takes for a rule's argument of this name."""
    if modules == "each":
        return lambda num_units: range(num_units - 1)
    if isinstance(modules, Sequence) and not isinstance(modules, str):
        return partial(_ends, modules)
    if not isinstance(modules, int) or modules < 1:
        raise ValueError(f"modules must be a whole number above 0, each, or the units of each; got {modules!r}")
    return modules


def _ends(modules: Sequence[int], num_units: int) -> list[int]:
    """Return the last unit of each module but the last, of modules of so many units."""
    if sum(modules) != num_units or min(modules) < 1:
        raise ValueError(f"modules must have {num_units} units together and each at least one, got {list(modules)}")
    return [after - 1 for after in accumulate(modules[:-1])]


def _start(x: Tensor, y: Tensor | None, num_classes: int, seed: int) -> Carry:
    return {"h": x}


def _scores(carry: Carry) -> Tensor:
    return carry["h"]
