"""What one batch of a sharded run would do: every operator, how tensors lie, and what is sent, found without ranks.

The real model takes one batch, forward and backward, as rank 0 of a process group that moves nothing: placements and
sizes are those of the run, numbers are not. So what is told is torch's own deduction, for any module, and costs one
batch's time of one rank.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from strategies.sharded import show
from trainers import modules
from trainers.activations.counting import Counting
from trainers.data.base import Dataset
from trainers.sharded.boxing import Event, local_bytes
from trainers.sharded.layout import OnMesh, from_torch
from trainers.sharded.rank import Rank
from trainers.sharded.settings import Settings


class Line(NamedTuple):
    """One operator as it is shown.

    Args:
        operator: its name in torch. layer: who calls it. backward: whether it is of the way back.
        inputs, output: shape and placements of each tensor. collectives: name and bytes of all ranks.
    """

    operator: str
    layer: str
    backward: bool
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    output: tuple[tuple[int, ...], str]
    collectives: tuple[tuple[str, float], ...]


class Forecast(NamedTuple):
    """One batch.

    Args:
        lines: operators in order, and as `boxing` what lies between them.
        counts, num_bytes: collectives of the batch by name, in all.
        step_counts, step_bytes: those of the step's end: gradients, norms.
        state_bytes: of the weights on a rank. activation_bytes: that autograd keeps there. plain_activation_bytes:
            that it would keep without 8 bits.
        placements: of every parameter.
    """

    lines: tuple[Line, ...]
    counts: Mapping[str, int]
    num_bytes: Mapping[str, int]
    step_counts: Mapping[str, int]
    step_bytes: Mapping[str, int]
    state_bytes: int
    activation_bytes: int
    plain_activation_bytes: int
    placements: Mapping[str, tuple[str, ...]]

    def sent_bytes(self, accumulate: int = 1) -> int:
        """Return the bytes of an optimizer step of so many batches."""
        return accumulate * sum(self.num_bytes.values()) + sum(self.step_bytes.values())


_VIEWS = ("aten.detach", "aten.alias", "aten.t.", "aten.view.", "aten._unsafe_view", "aten.transpose")


def forecast(settings: Settings, dataset: Dataset, model: nn.Module) -> Forecast:
    """Return what one batch does on rank 0. The model is copied, and not changed.

    Raises:
        LayerFailed: naming operator and layer that DTensor cannot do. RuntimeError: inside a process group.
    """
    lines: list[Line] = []
    with fake_group(settings.num_ranks):
        mesh = init_device_mesh("cpu", settings.mesh)
        layout = OnMesh(settings, mesh, told=lambda event: lines.append(_line(event)))
        cpu = torch.device("cpu")
        rank = Rank(settings._replace(optimizer=_PLAIN), dataset, 0, layout, cpu, copy.deepcopy(model).cpu())
        rank.model.train()
        rows = settings.batches(len(dataset.train_y), 1)[0]
        counting = _counting(rank)

        def keep(tensor: Tensor) -> Tensor:
            local = layout.pieces.of(tensor).local
            counting.watch(local, local)
            return tensor

        kept = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.random.fork_rng(devices=[]), kept:
            torch.manual_seed(0)
            x = rank.inputs(dataset.train_x[rows])
            rank.train_on(x, dataset.train_y[rows], 1.0)
        told = tuple(lines)
        counts, num_bytes = (Counter(counted) for counted in layout.sent)
        rank.gradients()
        with layout.working():
            layout.total(torch.zeros(2, dtype=torch.float64))
        after, sent = layout.sent
        parameters = dict(rank.model.named_parameters())
        return Forecast(
            told,
            counts,
            num_bytes,
            Counter(after) - counts,
            Counter(sent) - num_bytes,
            sum(local_bytes(p.detach()) for p in parameters.values()),
            counting.kept_bytes,
            counting.plain_bytes,
            {n: _shown(p) for n, p in parameters.items()},
        )


_PLAIN = {"name": "sgd", "lr": 0.0, "momentum": None, "weight_decay": None, "kwargs": {}}


def _counting(rank: Rank) -> Counting:
    """Return what counts the bytes of the pieces that autograd keeps; weights and buffers stay in any case."""
    counting = Counting(None, rank.model, [rank.layout.local(each) for _, each in modules.everything(rank.model)])
    if rank.saving.saver is not None:
        rank.saving.saver.watch = counting.watch
    return counting


@contextmanager
def fake_group(num_ranks: int) -> Iterator[None]:
    """Be rank 0 of so many in a process group that moves nothing.

    Raises:
        RuntimeError: when this process is in a group already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("this process is in a process group already, so none can be pretended")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=num_ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _line(event: Event) -> Line:
    tensors = [(tuple(leaf.shape), "".join(_shown(leaf))) for leaf in event.inputs]
    made = [(tuple(leaf.shape), "".join(_shown(leaf))) for leaf in event.outputs]
    collectives = tuple((found.by, found.num_bytes) for found in event.collectives)
    return Line(event.operator, event.layer, event.backward, tuple(tensors), made[0] if made else ((), ""), collectives)


def _shown(tensor: Tensor) -> tuple[str, ...]:
    if not isinstance(tensor, DTensor):
        return ("plain",)
    return tuple(show(from_torch(placement)) for placement in tensor.placements)


def is_view(line: Line) -> bool:
    """Return whether an operator only looks at its tensor differently."""
    return line.operator.startswith(_VIEWS)
