"""Many small clients as one program, in place of a loop over them; the results are the loop's up to rounding.

A fixed block of clients is cut into groups that are trained side by side, each on the batches that the loop would
draw. Clients may differ in size, steps, start and correction. Bits depend on the block alone, not on who trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from trainers import modules
from trainers.batched.block import Block, gather, joined
from trainers.batched.chain import parse
from trainers.batched.choosing import Choice, choose, group_width, measure
from trainers.batched.general import General
from trainers.batched.hand import Hand
from trainers.batched.orders import schedule
from trainers.batched.refusing import refusal
from trainers.batched.stacked import Group, Stacked
from trainers.local import LocalSettings, Task

__all__ = ["Batched", "Block", "Choice", "Group", "Stacked", "choose", "gather", "joined", "measure", "refusal"]

Gather = Callable[[Sequence[Task]], Block]
"""From tasks to the examples of their clients."""


class Batched:
    """Trains blocks of clients of one model.

    Args:
        model: must not be refused by `refusal`. Its weights do not matter and are left as they are.
        input_shape: of one example.
    """

    def __init__(self, model: nn.Module, settings: LocalSettings, input_shape: Sequence[int]) -> None:
        self._settings = settings
        own = modules.tensors(model)
        links = parse(model, input_shape)
        self._program = General(model, list(own), settings) if links is None else Hand(links, list(own), settings)
        self.width = group_width(model, settings, links)
        """Most clients that are trained side by side."""

    @torch.no_grad()
    def groups(
        self, tasks: Sequence[Task], data: Sequence[tuple[Tensor, Tensor]] | Block | Gather, *, run_seed: int
    ) -> Iterator[Group]:
        """Train a block and yield it group by group, so that whoever folds need not hold all of it.

        Args:
            data: the tasks' examples, in their order; or where to get them.

        Raises:
            ValueError: when a task is to make no steps, or there is not one lot of examples a task.
        """
        for first in range(0, len(tasks), self.width):
            part = tasks[first : first + self.width]
            block = _block(part, data, first)
            if len(block.sizes) != len(part):
                raise ValueError(f"{len(part)} tasks need as many clients' examples, got {len(block.sizes)}")
            plan = schedule(part, block.sizes, self._settings, run_seed, block.chosen)
            yield self._program.train(part, block, plan)

    def train(
        self, tasks: Sequence[Task], data: Sequence[tuple[Tensor, Tensor]] | Block | Gather, *, run_seed: int
    ) -> Stacked:
        """Train a block; see `groups` for the arguments.

        A client whose result is not finite is named in `Stacked.failed` and spoils no other.
        """
        return Stacked(list(self.groups(tasks, data, run_seed=run_seed)))


def _block(part: Sequence[Task], data: Sequence[tuple[Tensor, Tensor]] | Block | Gather, first: int) -> Block:
    if isinstance(data, Block):
        return data.cut(first, first + len(part))
    if callable(data):
        return data(part)
    return joined(data[first : first + len(part)])
