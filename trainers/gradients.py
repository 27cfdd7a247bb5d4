"""What is done to gradients between their sum over all ranks and the step: clipped by value, then noise is added.

Clipping by the norm comes before both, where a rank's work knows the norm. Noise is added to clipped gradients, so that
it is not scaled by what clips them; it depends on names and steps alone, so replicas, stages and shards agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from strategies.optimizers import Piece
from strategies.optimizers.gradient_noise import GradientNoise


class Shaping(NamedTuple):
    """What is done to gradients; by default nothing.

    Args:
        clip_value: largest size of an element, or None. noise: or None.
    """

    clip_value: float | None = None
    noise: GradientNoise | None = None

    @classmethod
    def of(cls, clip_value: float | None, noise: Mapping[str, Any] | None, seed: int) -> Shaping:
        """Read the experiment's `clip_value` and `gradient_noise`; `seed` is the run's."""
        return cls(clip_value, None if noise is None else GradientNoise(noise["eta"], noise["gamma"], seed))

    @property
    def idle(self) -> bool:
        """Whether gradients stay as they are."""
        return self == Shaping()

    @torch.no_grad()
    def apply(self, gradients: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Change whole gradients in place; of one that is given several times, once.

        Args:
            gradients: by the parameters' names in the whole model. step: from 1.
        """
        if self.idle:
            return
        for name, gradient in {id(gradient): (name, gradient) for name, gradient in gradients}.values():
            if self.clip_value is not None:
                gradient.clamp_(-self.clip_value, self.clip_value)
            if self.noise is not None:
                drawn = self.noise.draw(name, 0, gradient.numel(), step - 1)
                gradient.add_(drawn.view(gradient.shape).to(gradient))

    @torch.no_grad()
    def apply_to_pieces(self, gradient: Tensor, pieces: Sequence[Piece], step: int) -> None:
        """Change the gradient of a flat tensor in place, where it holds pieces of named tensors.

        Args:
            gradient: contiguous. step: from 1.
        """
        if self.idle:
            return
        flat = gradient.view(-1)
        for piece in pieces:
            own = flat[piece.offset : piece.offset + piece.length]
            if self.clip_value is not None:
                own.clamp_(-self.clip_value, self.clip_value)
            if self.noise is not None:
                own.add_(self.noise.draw(piece.name, piece.start, piece.length, step - 1).to(own))


class Stepped:
    """Shapes the gradients of some parameters before each step of their optimizer, whoever calls it.

    Args:
        named: the optimizer's parameters by their names in the whole model.

    Attributes:
        step: number of the next step, from 1; set it before the first, and it counts on.
    """

    def __init__(self, shaping: Shaping, optimizer: Optimizer, named: Sequence[tuple[str, Tensor]]) -> None:
        self._shaping, self._named = shaping, named
        self.step = 1
        if not shaping.idle:
            optimizer.register_step_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        self._shaping.apply(((name, p.grad) for name, p in self._named if p.grad is not None), self.step)
        self.step += 1
