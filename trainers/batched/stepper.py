"""One optimizer step of many clients: corrections, clipping and torch's own optimizer on stacked parameters.

An optimizer that works element by element does the same to a stack of parameters as to each alone, so torch's
classes serve as they are. Clients that have made their steps leave the stack at its end: the optimizer then goes on
with views of what remains, and what left can no longer change by a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from strategies.base import Correction, Tree
from trainers import optimizers

ELEMENTWISE = (
    "sgd", "adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "rprop", "asgd",
)  # fmt: skip
"""Optimizers of torch whose step of an element depends on that element alone."""


class Corrections:
    """The corrections of a group's gradients, stacked.

    Args:
        given: one a client. starts: what each parameter started from, stacked or shared.
    """

    def __init__(self, given: Sequence[Correction], starts: Mapping[str, Tensor]) -> None:
        self._starts = starts
        device = next(iter(starts.values())).device
        pulls = [each.proximal for each in given]
        self.proximal = torch.tensor(pulls, dtype=torch.float64, device=device) if any(pulls) else None
        self.offsets: dict[str, Tensor] = {}
        trees: list[Tree] = [each.offset or {} for each in given]
        offered = {name for tree in trees for name in tree}
        for name, start in starts.items():
            if name in offered:
                shape = next(tree[name] for tree in trees if name in tree)
                none = torch.zeros_like(shape)
                self.offsets[name] = torch.stack([tree.get(name, none) for tree in trees]).to(start)

    def __bool__(self) -> bool:
        return bool(self.offsets) or self.proximal is not None

    def correct(self, name: str, gradient: Tensor, value: Tensor) -> Tensor:
        """Return the corrected gradients of the first clients `[c, ...]` for one parameter at `value`."""
        active = len(gradient)
        if name in self.offsets:
            gradient = gradient + self.offsets[name][:active]
        if self.proximal is not None:
            start = self._starts[name]
            away = value - (start[:active] if start.dim() == value.dim() else start)
            gradient = gradient + _column(self.proximal[:active], value) * away
        return gradient


def clip_factors(squares: Sequence[Tensor], clip_norm: float) -> Tensor:
    """Return what each client's gradients are to be multiplied by, `[c]`, from their squared norms a parameter."""
    norms = torch.stack(list(squares)).sum(dim=0).sqrt()
    return (clip_norm / (norms + 1e-6)).clamp(max=1.0)


def squared_norms(gradient: Tensor) -> Tensor:
    """Return the squared norm of each client's gradient, `[c]`."""
    return torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()


class Stepper:
    """Steps the first clients of stacked parameters.

    Args:
        section: the optimizer. parameters: stacks `[C, ...]`, changed in place.
    """

    def __init__(self, section: Mapping[str, Any], parameters: Sequence[Tensor]) -> None:
        self._lr = optimizers.plain_lr(section)
        self._parameters = list(parameters)
        self._active = len(self._parameters[0])
        self._optimizer = None if self._lr is not None else optimizers.build(section, self._parameters)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Step with the gradients of the first clients; there are never more of them than before."""
        active = len(gradients[0])
        if active < self._active:
            self._shrink(active)
        if self._optimizer is None:
            torch._foreach_add_(self._parameters, list(gradients), alpha=-self._lr)
            return
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = optimizers.aligned(gradient, parameter)
        self._optimizer.step()

    def _shrink(self, active: int) -> None:
        """Go on with views of the first clients, their part of the optimizer's memory included."""
        fewer = [parameter[:active] for parameter in self._parameters]
        if self._optimizer is not None:
            state = self._optimizer.state
            for before, after in zip(self._parameters, fewer, strict=True):
                state[after] = {
                    key: value[:active] if torch.is_tensor(value) and value.shape == before.shape else value
                    for key, value in state.pop(before, {}).items()
                }
            (group,) = self._optimizer.param_groups
            group["params"] = fewer
        self._parameters, self._active = fewer, active


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
