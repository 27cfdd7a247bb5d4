"""The optimizer's step of one rank: clipped by the norm of the whole model, shaped, at the step's learning rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainers import learning_rate, optimizers
from trainers.gradients import Shaping
from trainers.pipeline.part import Part


class Update:
    """Moves one part's parameters.

    Args:
        part: whose. optimizer, learning_rate: sections of the experiment. clip_norm: of the whole gradient, or None.
        steps: of the whole run.
        shaping: what is done to gradients after clipping by the norm.
        decay: where a model says so, names of parameters with what the optimizer's weight decay is multiplied by for
            them.
    """

    def __init__(
        self,
        part: Part[Any],
        optimizer: Mapping[str, Any],
        learning_rate: Mapping[str, Any],
        clip_norm: float | None,
        steps: int,
        shaping: Shaping,
        decay: Sequence[tuple[float, Sequence[str]]] = (),
    ) -> None:
        self._part, self._learning_rate, self._clip_norm, self._steps = part, learning_rate, clip_norm, steps
        self._shaping = shaping
        self.optimizer = optimizers.build(optimizer, _groups(part, optimizer, decay)) if part.trained else None
        self._base_lr = [group["lr"] for group in self.optimizer.param_groups] if self.optimizer else []

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def add_norms(self, vector: Tensor, start: int) -> None:
        """Write squared norms of gradients into `vector[start:]`, at the places of the parameters' names."""
        for place, parameter in self._part.firsts:
            if parameter.grad is not None:
                vector[start + place] = float(parameter.grad.double().square().sum())

    @torch.no_grad()
    def apply(self, number: int, norm: float) -> None:
        """Do step `number`, from 1.

        Args:
            norm: of the whole gradient; not read where nothing is clipped.
        """
        if self.optimizer is None:
            return
        if self._clip_norm is not None and norm > self._clip_norm:
            gradients = {id(p.grad): p.grad for _, p in self._part.own if p.grad is not None}
            torch._foreach_mul_(list(gradients.values()), self._clip_norm / norm)
        self._shaping.apply(((name, p.grad) for name, p in self._part.own if p.grad is not None), number)
        rate = learning_rate.factor(self._learning_rate, number, self._steps)
        for group, base in zip(self.optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = base * rate
        self.optimizer.step()


def _groups(
    part: Part[Any], optimizer: Mapping[str, Any], decay: Sequence[tuple[float, Sequence[str]]]
) -> list[dict[str, Any]] | list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters by their weight decay; all together where there is none, or one for all."""
    trained = [(name, parameter) for name, parameter in part.own if parameter.requires_grad]
    whole = optimizer.get("weight_decay")
    if not whole or not decay:
        return trained
    factor_of = {name: factor for factor, names in decay for name in names}
    groups: dict[float, list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in trained:
        groups.setdefault(factor_of.get(name, 1.0), []).append((name, parameter))
    return [{"params": each, "weight_decay": factor * whole} for factor, each in groups.items()]
