"""Workers that share a module's batches: each takes some rows, and all make one step with the mean of their gradients.

    rows        replica r of R has rows floor(B r/R) up to floor(B (r+1)/R) of a batch of B
    a step      every replica goes forward and learns on its rows; gradients, and statistics such as BatchNorm's, are
                then summed in the order of the replicas, weighted by their shares of the rows; each makes that step
    afterwards  parameters, statistics and optimizers are the same on all replicas, bit for bit

That is data parallelism inside a module, and nothing of it leaves the module. Where a loss is a mean over examples,
the gradient is the whole batch's, in another order of summation. Not the same as one worker: BatchNorm normalises each
replica's rows by themselves (and its running variance is the mean of theirs), and each replica draws its own dropout.

The sum is of what all replicas send to all, not an all-reduce, whose order for more than two is the backend's: so one
process can do the same, a replica after the other, and has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from strategies.local import Carry, LocalModule, serial
from strategies.seeds import integer


def rows_of(size: int, replica: int, count: int) -> slice:
    """Return the rows of a batch that a replica has."""
    return slice(size * replica // count, size * (replica + 1) // count)


class Agreed(NamedTuple):
    """What the replicas of a worker know after a step.

    Args:
        last: number of the run's last step, 0 while nobody knows. sent_bytes: for this batch so far.
        losses: of the worker's modules, over the whole batch.
    """

    last: int
    sent_bytes: int
    losses: list[float]


class Alone:
    """A worker that shares with nobody."""

    def forward(self, module: LocalModule, carry: Carry, targets: Tensor, seed: int) -> Carry:
        """As of `LocalModule`."""
        return module(carry, targets, seed)  # type: ignore[no-any-return]

    def learn(self, module: LocalModule, optimizer: Optimizer) -> float:
        """As `serial.learn`; the loss on own rows, by their share."""
        return serial.learn(module, optimizer)

    def agree(self, last: int, sent_bytes: int, losses: Sequence[float]) -> Agreed:
        """Return what all replicas know together."""
        return Agreed(last, sent_bytes, list(losses))


class Replicas(Alone):
    """Some or all of the replicas of a worker, in this process.

    Args:
        own: which. count: of how many. size: rows of a batch. group: of the processes that have the others; None
            where all are here. Only rules with one inner step.
    """

    def __init__(self, own: Sequence[int], count: int, size: int, group: dist.ProcessGroup | None) -> None:
        self._own, self._group = own, group
        spans = [rows_of(size, replica, count) for replica in range(count)]
        self._shares = [(span.stop - span.start) / size for span in spans]
        self._spans = [slice(0, size)] if len(own) == 1 else [spans[replica] for replica in own]
        self._parts: list[Tensor] = []
        self._loss = 0.0

    def forward(self, module: LocalModule, carry: Carry, targets: Tensor, seed: int) -> Carry:
        """As of `LocalModule`, for own replicas' rows in turn; all but the last of them have then learned."""
        self._parts, self._loss = [], 0.0
        before = [buffer.clone() for buffer in module.buffers()]
        made: list[Carry] = []
        for replica, span in zip(self._own, self._spans, strict=True):
            if made:
                self._contribute(module, self._own[len(made) - 1])
                for buffer, kept in zip(module.buffers(), before, strict=True):
                    buffer.copy_(kept)
            part = {name: tensor[span].clone() for name, tensor in carry.items()} if len(self._own) > 1 else carry
            made.append(module(part, targets[span], integer(seed, "replica", replica)))
        return {name: torch.cat([each[name] for each in made]) for name in made[0]} if len(made) > 1 else made[0]

    @torch.no_grad()
    def learn(self, module: LocalModule, optimizer: Optimizer) -> float:
        """Make the step of all replicas together; return the loss on own rows, by their share."""
        self._contribute(module, self._own[-1])
        parts = self._parts
        if self._group is not None:
            parts = [torch.empty_like(parts[0]) for _ in self._shares]
            dist.all_gather(parts, self._parts[0], self._group)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        tensors = _summed(module)
        for tensor, values in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.view_as(tensor))
        optimizer.step()
        return self._loss

    def agree(self, last: int, sent_bytes: int, losses: Sequence[float]) -> Agreed:
        own = torch.tensor([last, sent_bytes, *losses], dtype=torch.float64)
        if self._group is None:
            return super().agree(last, sent_bytes, losses)
        told = [torch.empty_like(own) for _ in self._shares]
        dist.all_gather(told, own, self._group)
        whole = torch.stack(told)
        return Agreed(int(whole[:, 0].max()), int(whole[:, 1].sum()), _in_order(whole[:, 2:]).tolist())

    def _contribute(self, module: LocalModule, replica: int) -> None:
        """Learn from the kept rows and keep what they add to the sum."""
        module.zero_grad(set_to_none=True)
        with torch.enable_grad():
            loss = module.learn()
        share = self._shares[replica]
        self._loss += loss * share
        self._parts.append(torch.cat([tensor.flatten() * share for tensor in _summed(module)]))


def _summed(module: LocalModule) -> list[Tensor]:
    """Return what is summed over replicas: gradients, and statistics that move with the rows."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return [*gradients, *(buffer for buffer in module.buffers() if buffer.is_floating_point())]


def _in_order(rows: Tensor) -> Tensor:
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total
