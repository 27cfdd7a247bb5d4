"""What happens around each operator on DTensors: collectives are counted, draws are whole, and failures are told.

counting     every collective, by operator and bytes; `torch.distributed.tensor.debug.CommDebugMode` counts the same
             calls without their bytes
draws        a mask of dropout is drawn for the whole tensor, on every rank alike, and each rank keeps its piece: so
             the numbers are those of one process. DTensor itself would draw each piece from the same seed
reshapes     where a split cannot pass a reshape, DTensor refuses; here the tensor is gathered first, and counted
failures     an operator that DTensor has no rule for is told with the layer that called it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from strategies.sharded.boxing import moved_bytes

_COLLECTIVES = {
    "all_reduce": "all-reduce",
    "all_gather_into_tensor": "all-gather",
    "reduce_scatter_tensor": "reduce-scatter",
    "all_to_all_single": "all-to-all",
}
_RESHAPES = ("view", "_unsafe_view", "reshape")
_DRAWS = ("bernoulli_", "bernoulli", "native_dropout", "rand_like", "randn_like", "uniform_", "normal_")


class Collective(NamedTuple):
    """One collective, and the bytes that all ranks of all groups send for it.

    Args:
        by: its name. num_bytes: 0 for what a group of one sends.
    """

    by: str
    num_bytes: float


class Event(NamedTuple):
    """One operator on DTensors: its name, the layer, whether in backward, what it reads and makes, its collectives."""

    operator: str
    layer: str
    backward: bool
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    collectives: tuple[Collective, ...]


class Layers:
    """Which layer is at work: the innermost module in forward, and in backward the one whose operator is undone."""

    def __init__(self, model: nn.Module) -> None:
        self._stack: list[str] = []
        self._of_node: dict[int, str] = {}
        self._handles = []
        for name, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda _m, _a, name=name: self._stack.append(name)))
            self._handles.append(module.register_forward_hook(lambda _m, _a, _o: self._leave(), always_call=True))

    def _leave(self) -> None:
        self._stack.pop()

    def now(self) -> tuple[str, bool]:
        """Return the layer, and whether this is its backward."""
        node = torch._C._current_autograd_node()
        if node is not None:
            return self._of_node.get(node._sequence_nr(), ""), True
        layer = self._stack[-1] if self._stack else ""
        if torch.is_grad_enabled():
            self._of_node[torch.autograd._get_sequence_nr() - 1] = layer
        return layer, False

    def forget(self) -> None:
        """Forget the operators of a batch that is done."""
        self._of_node.clear()
        self._stack.clear()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class Boxing(TorchDispatchMode):
    """Runs operators on DTensors as the module says.

    Args:
        layers: who calls. world_size: ranks of the whole mesh. told: called with every operator; None for nobody.
    """

    def __init__(self, layers: Layers, world_size: int, told: Callable[[Event], None] | None = None) -> None:
        super().__init__()
        self._layers, self._told = layers, told
        self._inner = _Counting(world_size)

    @property
    def counts(self) -> Counter[str]:
        """Collectives so far, by name."""
        return self._inner.counts

    @property
    def num_bytes(self) -> Counter[str]:
        """Bytes so far, by name of the collective."""
        return self._inner.num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(issubclass(kind, DTensor) for kind in types):
            self._inner.since = []
            out = self._inner.__torch_dispatch__(func, types, args, kwargs)
            if self._inner.since and self._told is not None:
                self._told(Event("boxing", *self._layers.now(), (), (), tuple(self._inner.since)))
            return out
        layer, backward = self._layers.now()
        name = func.overloadpacket.__name__
        self._inner.since = []
        with self._inner:
            try:
                if name == "empty_like":
                    out = _empty(func, args, kwargs)
                elif name in _DRAWS:
                    out = _draw(func, args, kwargs)
                elif name == "mm":
                    out = func(*_plainly_split(*args))
                elif name in _RESHAPES:
                    out = _reshape(func, args, kwargs)
                else:
                    out = func(*args, **kwargs)
            except (RuntimeError, NotImplementedError, ValueError, AssertionError, IndexError) as error:
                from trainers.pipeline.chunk import LayerFailed  # which imports all models

                raise LayerFailed(_failure(name, layer, backward, args, error)) from error
        if self._told is not None:
            read = tuple(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            made = tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            self._told(Event(str(func), layer, backward, read, made, tuple(self._inner.since)))
        return out


class _Counting(TorchDispatchMode):
    """Counts collectives, on the tensors that ranks hold."""

    def __init__(self, world_size: int) -> None:
        super().__init__()
        self._world_size = world_size
        self.counts: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()
        self.since: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        by = _COLLECTIVES.get(func.overloadpacket.__name__) if func.namespace == "_c10d_functional" else None
        if by is not None:
            size = dist.distributed_c10d._resolve_process_group(args[-1]).size()
            held = args[0].numel() * args[0].element_size()
            whole = held * size if by in ("all-gather", "all-to-all") else held
            sent = moved_bytes(by, whole, size) * (self._world_size / size)
            self.counts[by] += 1
            self.num_bytes[by] += int(sent)
            self.since.append(Collective(by, sent))
        return func(*args, **(kwargs or {}))


def _reshape(func: Any, args: Any, kwargs: Any) -> Any:
    """Reshape; what cannot be reshaped in pieces is gathered first."""
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        tensor = args[0]
        if all(placement.is_replicate() for placement in tensor.placements):
            raise
    return func(tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim), *args[1:], **kwargs)


def _plainly_split(a: DTensor, b: DTensor) -> tuple[DTensor, DTensor]:
    """Return factors that are both split in parts along what is summed over as if they were split in one piece.

    The order of a sum's terms is free, so what is split alike is split well; DTensor knows that of whole splits only.
    """
    pairs = list(zip(a.placements, b.placements, strict=True))
    alike = [
        isinstance(left, _StridedShard)
        and isinstance(right, _StridedShard)
        and (left.dim, right.dim) == (1, 0)
        and left.split_factor == right.split_factor
        and a.shape[1] % (left.split_factor * a.device_mesh.size(axis)) == 0
        for axis, (left, right) in enumerate(pairs)
    ]
    if not any(alike):
        return a, b
    return _laid(a, [Shard(1) if same else p for p, same in zip(a.placements, alike, strict=True)]), _laid(
        b, [Shard(0) if same else p for p, same in zip(b.placements, alike, strict=True)]
    )


def _laid(tensor: DTensor, placements: Sequence[Placement]) -> DTensor:
    """Return the same pieces under other placements."""
    return DTensor.from_local(
        tensor.to_local(),
        tensor.device_mesh,
        placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def _draw(func: Any, args: Any, kwargs: Any) -> Any:
    """Draw for the whole tensor and keep this rank's piece. The numbers are those that one process draws."""
    lead = args[0]
    if not isinstance(lead, DTensor) or any(isinstance(a, Tensor) for a in args[1:]):
        return func(*args, **kwargs)
    if func.overloadpacket.__name__ == "native_dropout":
        rate, training = args[1], args[2]
        if not training or not rate:
            return func(*args, **kwargs)
        keep = torch.empty(lead.shape, dtype=lead.dtype, device=lead.device).bernoulli_(1 - rate)
        mask = _piece(keep, lead)
        return lead * mask / (1 - rate) if rate < 1 else lead * 0, mask.bool()
    whole = torch.empty(lead.shape, dtype=kwargs.get("dtype") or lead.dtype, device=lead.device)
    drawn = func(whole, *args[1:], **kwargs)
    piece = _piece(drawn, lead)
    if not func.overloadpacket.__name__.endswith("_"):
        return piece
    counts = all(not p.is_partial() or lead.device_mesh.get_local_rank(a) == 0 for a, p in enumerate(lead.placements))
    lead.to_local().copy_(piece.to_local() if counts else torch.zeros_like(piece.to_local()))
    return lead


def _empty(func: Any, args: Any, kwargs: Any) -> Any:
    """Make room; beside a sum it is for copies, so that a mask that is drawn there multiplies every addend."""
    lead = args[0]
    if isinstance(lead, DTensor) and any(placement.is_partial() for placement in lead.placements):
        copies = _laid(lead, [Replicate() if placement.is_partial() else placement for placement in lead.placements])
        return func(copies, *args[1:], **kwargs)
    return func(*args, **kwargs)


def _piece(whole: Tensor, like: DTensor) -> DTensor:
    placements = [Replicate() if p.is_partial() else p for p in like.placements]
    return distribute_tensor(whole, like.device_mesh, placements, src_data_rank=None)


def _failure(name: str, layer: str, backward: bool, args: Any, error: BaseException) -> str:
    given = ", ".join(
        f"{list(leaf.shape)} {''.join(map(str, leaf.placements))}"
        for leaf in tree_leaves(args)
        if isinstance(leaf, DTensor)
    )
    where = f"layer {layer!r}" if layer else "the model or its loss"
    said = str(error).strip().splitlines()
    return (
        f"{where}{', in backward,' if backward else ''} calls aten.{name} on {given}, which DTensor cannot do on "
        f"pieces: {said[0] if said else type(error).__name__}"
    )


def add_up(module: nn.Module, given: Any, returned: Any) -> Any:
    """Make copies of the sums that a module returns, and later of their gradients: a hook of every module.

    Left to itself DTensor adds a sum up anew in each operator that needs it, since that is below autograd; and the
    gradients of several readers, such as three projections, are added up on the ranks before they are sent.
    """
    return tree_map(_added_up, returned)


def _added_up(leaf: Any) -> Any:
    if not isinstance(leaf, DTensor):
        return leaf
    copies = _copies(leaf)
    if copies.requires_grad:
        copies.register_hook(_copies)
    return copies


def _copies(tensor: Any) -> Any:
    if not isinstance(tensor, DTensor) or not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    return tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])


def local_bytes(tensor: Tensor) -> int:
    """Return the bytes of what this rank holds of a tensor."""
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held.numel() * held.element_size()


def whole(tree: Any) -> Any:
    """Return what a model returned with all its tensors whole and plain."""
    return tree_map(lambda leaf: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf, tree)


@contextmanager
def plain_is_whole() -> Iterator[None]:
    """Let tensors that a module makes by itself, such as positions or masks, count as copies on every rank."""
    from torch.distributed.tensor.experimental import implicit_replication

    with implicit_replication():
        yield
