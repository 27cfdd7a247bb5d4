"""The sides of `pipeline_speed`: each makes the same steps of the same model, and shows its gradients.

`Side.seconds` takes the time; all ranks call it alike. What is compared, and how, is told in `pipeline_speed`.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from benchmarks.workloads import Deep, Plain
from trainers import models
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.local import loss_of
from trainers.pipeline import program
from trainers.pipeline.layers import chain
from trainers.pipeline.settings import Batches, Settings

STAGES = 2
OURS = ("gpipe", "1f1b", "interleaved", "zero-bubble", "zero-bubble-v")
SINGLE_STAGE = ("GPipe", "1F1B")
THEIRS = (*SINGLE_STAGE, "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
FOLDED = ("ZBVZeroBubble", "DualPipeV")
"""Schedules whose ranks hold a stage from the front and one from the back."""

Gradients = dict[str, Tensor]


class Side(ABC):
    """One way to make steps."""

    def __init__(self) -> None:
        self.number = 0

    @abstractmethod
    def work(self, number: int) -> None:
        """Make a step, whose number decides its batch."""

    @abstractmethod
    def gradients(self) -> Gradients:
        """Return those of this process's parameters after a step, by their names in the model."""

    def seconds(self, steps: int) -> float:
        """Make some steps on all ranks; return the seconds of one."""
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            self.number += 1
            self.work(self.number)
        dist.barrier()
        return (time.perf_counter() - began) / steps


class Ours(Side):
    def __init__(self, rank: int, settings: Settings, data: Dataset) -> None:
        super().__init__()
        self.rank = program.build(Plain(rank, STAGES), settings, data)

    def work(self, number: int) -> None:
        for _ in self.rank.step(number):
            pass

    def gradients(self) -> Gradients:
        return {name: parameter.grad for name, parameter in self.rank.part.own if parameter.grad is not None}


class Own(Side):
    """What the sides that are not ours share: a model of its own, batches, and SGD over the parts held here."""

    def __init__(self, settings: Settings, data: Dataset, positions: list[int]) -> None:
        super().__init__()
        self.data, self.batches = data, Batches(settings, len(data.train_y))
        model = models.build(
            settings.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=settings.model_seed
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        links, ends = [link.module for link in chain(model).layers], [0]
        for count in settings.layers:
            ends.append(ends[-1] + count)
        self.parts = {p: nn.Sequential(*links[ends[p] : ends[p + 1]]) for p in positions}
        parameters = [parameter for part in self.parts.values() for parameter in part.parameters()]
        self.named = {names[id(parameter)]: parameter for parameter in parameters}
        self.optimizer = torch.optim.SGD(parameters, lr=settings.optimizer["lr"], fused=True)

    def inputs(self, number: int) -> Tensor:
        return to_tensor(self.data.train_x[self.batches.of_step(number)[0]], self.data, torch.float32)

    def targets(self, number: int) -> Tensor:
        return to_labels(self.data.train_y[self.batches.of_step(number)[0]])

    def gradients(self) -> Gradients:
        return {name: parameter.grad for name, parameter in self.named.items() if parameter.grad is not None}


class Theirs(Own):
    """torch.distributed.pipelining, with its stages made by hand."""

    def __init__(self, rank: int, name: str, deep: Deep, microbatches: int, data: Dataset) -> None:
        single = name in SINGLE_STAGE
        settings = deep.settings(STAGES, "gpipe" if single else "interleaved", microbatches)
        last = len(settings.layers) - 1
        mine = [rank] if single else [rank, last - rank if name in FOLDED else rank + STAGES]
        super().__init__(settings, data, mine)
        device = torch.device("cpu")
        stages = [PipelineStage(self.parts[p], p, last + 1, device) for p in mine]
        made = schedules.get_schedule_class(name)
        self.schedule = made(stages[0] if single else stages, microbatches, loss_fn=loss_of)
        self.first, self.last = 0 in mine, last in mine

    def work(self, number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        given = (self.inputs(number),) if self.first else ()
        losses: list[Tensor] = []
        targets = self.targets(number) if self.last else None
        self.schedule.step(*given, target=targets, losses=losses if self.last else None, return_outputs=False)
        if self.last:
            float(torch.stack(losses).detach().sum())
        self.optimizer.step()


class Single(Own):
    """One process, the other one idle except for the check."""

    def __init__(self, rank: int, settings: Settings, data: Dataset) -> None:
        super().__init__(settings, data, list(range(len(settings.layers))))
        self.idle = rank > 0

    def work(self, number: int, always: bool = False) -> None:
        if self.idle and not always:
            return
        self.optimizer.zero_grad(set_to_none=True)
        value = self.inputs(number)
        for part in self.parts.values():
            value = part(value)
        loss = loss_of(value, self.targets(number))
        loss.backward()
        float(loss.detach())
        self.optimizer.step()


class Ceiling(Own):
    """Each process runs its stage's micro-batches on made-up boundaries, side by side with the other."""

    def __init__(self, rank: int, settings: Settings, data: Dataset, name: str) -> None:
        super().__init__(settings, data, [rank])
        self.forwards_first, self.microbatches = name == "ceiling *", settings.microbatches
        self.factor = 1.0 if name == "busy" else (self.microbatches + STAGES - 1) / self.microbatches
        self.is_first, self.is_last = rank == 0, rank == STAGES - 1
        x = self.inputs(1)
        if rank > 0:
            width = settings.model.get("width") or settings.model["hidden"][0]
            x = torch.randn(*(x.shape if not x.is_floating_point() else x.shape[:1]), width)
        self.x, self.y = x.tensor_split(self.microbatches), self.targets(1).tensor_split(self.microbatches)
        with torch.no_grad():
            self.upstream = [torch.randn_like(self.parts[rank](part)) * 1e-4 for part in self.x]
        self.part = self.parts[rank]

    def forward(self, microbatch: int) -> Tensor:
        x = self.x[microbatch].detach()
        out = self.part(x.requires_grad_() if x.is_floating_point() and not self.is_first else x)
        return loss_of(out, self.y[microbatch]) / self.microbatches if self.is_last else out

    def backward(self, microbatch: int, out: Tensor) -> None:
        out.backward(None if self.is_last else self.upstream[microbatch])

    def work(self, number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        if self.forwards_first:
            outs = [self.forward(m) for m in range(self.microbatches)]
            for m in reversed(range(self.microbatches)):
                self.backward(m, outs.pop())
        else:
            for m in range(self.microbatches):
                self.backward(m, self.forward(m))

    def seconds(self, steps: int) -> float:
        computing = super().seconds(steps)
        dist.barrier()
        began = time.perf_counter()
        for _ in range(steps):
            self.optimizer.step()
        dist.barrier()
        updating = (time.perf_counter() - began) / steps
        return computing * self.factor + updating


def build(rank: int, name: str, deep: Deep, microbatches: int, data: Dataset) -> Side:
    """Return a side by the name it has in the tables.

    Raises:
        ValueError: of torch's, when a schedule does not take so many micro-batches; on every rank alike.
    """
    kind, _, schedule = name.partition(" ")
    if kind == "ours":
        return Ours(rank, deep.settings(STAGES, schedule, microbatches), data)
    if kind == "torch":
        return Theirs(rank, schedule, deep, microbatches, data)
    settings = deep.settings(STAGES, "gpipe", microbatches)
    return Single(rank, settings, data) if kind == "single" else Ceiling(rank, settings, data, name)


def compare(rank: int, sides: Mapping[str, Side], single: Single) -> dict[str, float]:
    """Make one step on every side; return the largest difference of a gradient from the single process's.

    Relative to the largest gradient of that parameter.
    """
    single.work(1, always=True)
    expected = {name: gradient.clone() for name, gradient in single.gradients().items()}
    worst = {}
    for name, side in sides.items():
        if isinstance(side, Ceiling | Single):
            continue
        side.work(1)
        found = side.gradients()
        assert found, f"{name} has no gradients"
        most = torch.stack([(found[n] - expected[n]).abs().max() / expected[n].abs().max() for n in found]).max()
        count = torch.tensor(len(found))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        dist.all_reduce(count)
        assert int(count) == len(expected), f"{name} has {int(count)} gradients of {len(expected)}"
        worst[name] = float(most)
    return worst


def spread(values: list[float]) -> str:
    """Write a median with the least and the most."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"
