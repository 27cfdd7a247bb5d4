"""A model's tensors on a mesh of ranks: put there, and read off again.

Every rank builds the whole model from the seed and keeps its pieces, so nothing is shipped. What optimizers move are
the pieces themselves, as plain tensors: steps that work number by number, fused ones too, are those of one process.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement as TorchPlacement
from torch.distributed.tensor.placement_types import _StridedShard

from strategies.sharded import BROADCAST, PARTIAL, Broadcast, Placement, Split
from trainers.sharded import rules
from trainers.sharded.boxing import Boxing, Layers, add_up, plain_is_whole, whole
from trainers.sharded.pieces import Pieces, arrived
from trainers.sharded.settings import Settings


def to_torch(placement: Placement) -> TorchPlacement:
    """Return torch's word for a placement."""
    if isinstance(placement, Split):
        if placement.parts == 1:
            return Shard(placement.dim)
        return _StridedShard(placement.dim, split_factor=placement.parts)
    return Replicate() if isinstance(placement, Broadcast) else Partial()


def from_torch(placement: TorchPlacement) -> Placement:
    """Return the project's word for a placement of torch; a mean over ranks counts as a sum."""
    if isinstance(placement, _StridedShard):
        return Split(placement.dim, int(placement.split_factor))
    if isinstance(placement, Shard):
        return Split(placement.dim)
    return BROADCAST if isinstance(placement, Replicate) else PARTIAL


class Layout(Protocol):
    """Where tensors lie, as a rank sees it.

    Attributes:
        pieces: of tensors, that this rank holds.
    """

    pieces: Pieces

    def place(self, model: nn.Module) -> None:
        """Lay the model's parameters and buffers out."""
        ...

    def give(self, tensor: Tensor) -> Tensor:
        """Return a batch as the model takes it."""
        ...

    def local(self, tensor: Tensor) -> Tensor:
        """Return what this rank holds; they share memory."""
        ...

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """Return what this rank holds of the summed gradient."""
        ...

    def whole(self, local: Tensor, like: Tensor) -> Tensor:
        """Return the whole of what lies as `like` does; every rank calls it."""
        ...

    def piece(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Return what this rank holds of a whole tensor that lies as `like` does."""
        ...

    def copies(self, parameter: Tensor) -> int:
        """Return how many ranks hold each number."""
        ...

    def total(self, vector: Tensor) -> Tensor:
        """Add up over all ranks."""
        ...

    def plain(self, tree: Any) -> Any:
        """Return what a model returned with whole, plain tensors."""
        ...

    def working(self) -> Any:
        """Enter what operators run under."""
        ...

    @property
    def sent(self) -> tuple[Counter[str], Counter[str]]:
        """Collectives so far by name, and their bytes."""
        ...


class OneProcess:
    """Everything lies here: the computation that all layouts stand for."""

    def __init__(self) -> None:
        self.pieces = Pieces()

    def place(self, model: nn.Module) -> None:
        return

    def give(self, tensor: Tensor) -> Tensor:
        return tensor

    def local(self, tensor: Tensor) -> Tensor:
        return tensor

    def gradient(self, parameter: Tensor) -> Tensor | None:
        return parameter.grad

    def whole(self, local: Tensor, like: Tensor) -> Tensor:
        return local

    def piece(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor

    def copies(self, parameter: Tensor) -> int:
        return 1

    def total(self, vector: Tensor) -> Tensor:
        return vector

    def plain(self, tree: Any) -> Any:
        return tree

    @contextmanager
    def working(self) -> Iterator[None]:
        yield

    @property
    def sent(self) -> tuple[Counter[str], Counter[str]]:
        return Counter(), Counter()


class OnMesh:
    """DTensors on a mesh.

    Args:
        told: called with every operator, as by `boxing.Boxing`.
    """

    def __init__(self, settings: Settings, mesh: DeviceMesh, told: Any = None) -> None:
        rules.register()
        logging.getLogger("torch.distributed.tensor").setLevel(logging.ERROR)  # that gloo gathers is counted, and told
        self._settings, self._mesh, self._told = settings, mesh, told
        self.pieces = Pieces(mesh)
        self._boxing: Boxing | None = None

    def place(self, model: nn.Module) -> None:
        done: dict[int, nn.Parameter] = {}
        for name, parameter in list(model.named_parameters(remove_duplicate=False)):
            if id(parameter) not in done:
                placements = [to_torch(placement) for placement in self._settings.placement(name)]
                laid = distribute_tensor(parameter.detach(), self._mesh, placements, src_data_rank=None)
                done[id(parameter)] = nn.Parameter(laid, requires_grad=parameter.requires_grad)
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, done[id(parameter)])
        copies = [Replicate()] * self._mesh.ndim
        for name, buffer in list(model.named_buffers()):
            owner, _, last = name.rpartition(".")
            laid = DTensor.from_local(buffer, self._mesh, copies, run_check=False)
            model.get_submodule(owner)._buffers[last] = laid
        for module in model.modules():
            module.register_forward_hook(add_up)
        self._layers = Layers(model)
        self._boxing = Boxing(self._layers, self._settings.num_ranks, self._told)

    def give(self, tensor: Tensor) -> Tensor:
        axes = self._settings.batch_axes
        placements = [Shard(0) if axis in axes else Replicate() for axis in range(self._mesh.ndim)]
        return distribute_tensor(tensor, self._mesh, placements, src_data_rank=None)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def gradient(self, parameter: Tensor) -> Tensor | None:
        assert isinstance(parameter, DTensor)
        if parameter.grad is None:
            return None
        assert isinstance(parameter.grad, DTensor)
        return arrived(parameter.grad.redistribute(self._mesh, parameter.placements).to_local())

    def whole(self, local: Tensor, like: Tensor) -> Tensor:
        assert isinstance(like, DTensor)
        if local.shape != like.to_local().shape or local.dim() == 0:
            return local  # a count of steps, say
        laid = DTensor.from_local(
            local, self._mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return laid.full_tensor()

    def piece(self, tensor: Tensor, like: Tensor) -> Tensor:
        assert isinstance(like, DTensor)
        if tensor.shape != like.shape or tensor.dim() == 0:
            return tensor
        return distribute_tensor(tensor, self._mesh, like.placements, src_data_rank=None).to_local()

    def copies(self, parameter: Tensor) -> int:
        assert isinstance(parameter, DTensor)
        axes = [axis for axis, placement in enumerate(parameter.placements) if not placement.is_shard()]
        return math.prod(self._mesh.size(axis) for axis in axes if not _strided(parameter.placements[axis]))

    def total(self, vector: Tensor) -> Tensor:
        from torch.distributed._functional_collectives import all_reduce

        there = vector.to(self._mesh.device_type)
        assert dist.group.WORLD is not None
        return arrived(all_reduce(there, "sum", dist.group.WORLD)).to(vector.device)

    def plain(self, tree: Any) -> Any:
        return whole(tree)

    @contextmanager
    def working(self) -> Iterator[None]:
        assert self._boxing is not None
        try:
            with plain_is_whole(), self._boxing:
                yield
        finally:
            self._layers.forget()

    @property
    def sent(self) -> tuple[Counter[str], Counter[str]]:
        assert self._boxing is not None
        return self._boxing.counts, self._boxing.num_bytes


def _strided(placement: TorchPlacement) -> bool:
    return isinstance(placement, _StridedShard)


def resolve(patterns: Sequence[tuple[str, Sequence[str]]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the placements of each parameter that some pattern matches, the first that does.

    Args:
        patterns: as of `fnmatch`, `*` and `?`, with the placements of its parameters, one an axis.
    """
    from fnmatch import fnmatchcase

    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        for pattern, placements in patterns:
            if fnmatchcase(name, pattern):
                found[name] = tuple(placements)
                break
    return found
