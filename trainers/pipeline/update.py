"""The optimizer's step of one rank: clipped by the norm of the whole model, shaped, at the step's learning rate.

Replicas of a stage may share it out: ZeRO stage 1. Each then has the optimizer's memory of its own share alone, and
hears from the others what they moved. Gradients are summed over all replicas as ever, so every bit is as without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from strategies.optimizers.shares import owners
from trainers import optimizers
from trainers.gradients import Shaping
from trainers.learning_rate import Rates
from trainers.pipeline.collective import Collective
from trainers.pipeline.part import Part


class Update:
    """Moves one part's parameters, or a share of them where replicas of the stage move the others.

    Args:
        part: whose. optimizer, learning_rate: sections of the experiment. clip_norm: of the whole gradient, or None.
        steps: of the whole run.
        shaping: what is done to gradients after clipping by the norm.
        decay: where a model says so, names of parameters with what the optimizer's weight decay is multiplied by for
            them.
        member, num_members: which of the stage's replicas this is, where each has a share; see `hand_round`.
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
        member: int = 0,
        num_members: int = 1,
    ) -> None:
        self._part, self._clip_norm, self._shaping = part, clip_norm, shaping
        trained = [(name, parameter) for name, parameter in part.own if parameter.requires_grad]
        sizes: Counter[str] = Counter()
        for name, parameter in trained:  # copies of a tied one go together
            sizes[name] += parameter.numel()
        owner = owners(sizes, num_members)
        self.shares = [[each for each in trained if owner[each[0]] == number] for number in range(num_members)]
        self.own = self.shares[member]
        self.optimizer = optimizers.build(optimizer, _groups(self.own, optimizer, decay)) if self.own else None
        self._rates = Rates(self.optimizer, learning_rate, steps) if self.optimizer else None

    def begin(self) -> None:
        """Forget the gradients of the step before."""
        for _, parameter in self._part.own:
            parameter.grad = None

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
        if self.optimizer is None or self._rates is None:
            return
        if self._clip_norm is not None and norm > self._clip_norm:
            gradients = {id(p.grad): p.grad for _, p in self.own if p.grad is not None}
            torch._foreach_mul_(list(gradients.values()), self._clip_norm / norm)
        self._shaping.apply(((name, p.grad) for name, p in self.own if p.grad is not None), number)
        self._rates.set(number)
        self.optimizer.step()

    def hand_round(self, collective: Collective, group: str) -> Iterator[None]:
        """Send what this share moved to the replicas that hold the others, and take theirs: the very bits.

        Yields while it would wait for a rank of the same process.

        Args:
            group: of the stage's replicas, in `collective`; not read where one has all.
        """
        if len(self.shares) == 1 or not any(self.shares):
            return
        wide = reduce(torch.promote_types, [parameter.dtype for share in self.shares for _, parameter in share])
        sizes = [sum(parameter.numel() for _, parameter in share) for share in self.shares]
        moved = [parameter.detach().flatten().to(wide) for _, parameter in self.own]
        like = next(parameter for share in self.shares for _, parameter in share)
        flat = torch.cat(moved) if moved else torch.empty(0, dtype=wide, device=like.device)
        pending = collective.gather(group, flat, sizes)
        while not pending.ready():
            yield None
        for share, values in zip(self.shares, pending.result().split(sizes), strict=True):
            if share is not self.own:
                _take(share, values)


@torch.no_grad()
def _take(share: Sequence[tuple[str, torch.nn.Parameter]], values: Tensor) -> None:
    for (_, parameter), own in zip(share, values.split([p.numel() for _, p in share]), strict=True):
        parameter.copy_(own.view(parameter.shape))


def _groups(
    trained: list[tuple[str, torch.nn.Parameter]],
    optimizer: Mapping[str, Any],
    decay: Sequence[tuple[float, Sequence[str]]],
) -> list[dict[str, Any]] | list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters by their weight decay; all together where there is none, or one for all."""
    whole = optimizer.get("weight_decay")
    if not whole or not decay:
        return trained
    factor_of = {name: factor for factor, names in decay for name in names}
    groups: dict[float, list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in trained:
        groups.setdefault(factor_of.get(name, 1.0), []).append((name, parameter))
    return [{"params": each, "weight_decay": factor * whole} for factor, each in groups.items()]
