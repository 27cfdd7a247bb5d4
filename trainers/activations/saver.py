"""The saved-tensor hooks: what autograd is given to keep, layer by layer, and the ranges it is encoded in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from strategies import activations
from strategies.activations import Encoded, Running
from strategies.seeds import purpose_word
from trainers.activations.packed import Held, Kept, Laid, Mask, Packed, Piece, extent, unpack
from trainers.activations.policy import Policy, heads_of, join
from trainers.activations.weights import as_it_is, weight_of

STATISTICS = 8
"""A saved tensor with at most this part of the input's numbers is taken for statistics; where the input is tokens, of
the largest that was saved before."""

Part = tuple[int, int]
"""Which part of a step is under way: its batch, its micro-batch."""


class Saver:
    """What one process keeps of its layers.

    Args:
        memory: the experiment's section. layers: own ones, by their number in the model, with name and module.
        heads: attention heads of every layer of the model, by number, where it has any; see `heads_of`.
        parts: statistics are told from the input of the part of a layer that is running, not from the layer's.
        piece_of: returns what this process has of a tensor. What is left alone is told by whole tensors, alike in all
            processes; rounding is drawn, and ranges are remembered, by the piece.

    Attributes:
        watch: called with what this process has of each saved tensor, and what is kept of it.
    """

    def __init__(
        self,
        memory: Mapping[str, Any],
        layers: Mapping[int, tuple[str, nn.Module]],
        heads: Mapping[int, int] | None = None,
        *,
        parts: bool = False,
        piece_of: Callable[[Tensor], Piece] = Piece,
    ) -> None:
        self.policy = Policy.of(memory)
        self.watch: Callable[[Tensor, Packed], None] | None = None
        self.running = Running()
        self.piece_of = piece_of
        self._names = {index: name for index, (name, _) in layers.items()}
        self._heads = heads_of({i: m for i, (_, m) in layers.items()}) if heads is None else heads
        self._parameters = [parameter for _, module in layers.values() for parameter in module.parameters()][:1]
        self._path: list[tuple[str, int, nn.Module]] = []
        self._hooks: list[Any] = []
        self._batches: list[int] = []
        self._part: Part | None = None
        self._layer: _Layer | None = None
        self._seed = 0
        self._lasting: dict[int, Tensor] = {}
        self._blocks: dict[int, tuple[StorageWeakRef, int, Kept]] = {}
        if self.policy.rules or parts:
            for name, module in layers.values():
                self._follow(name, module)

    # --------------------------------------------------------------------------------------- what a runtime calls

    @contextmanager
    def microbatch(self, number: int, seed: int) -> Iterator[None]:
        """Keep what the layers of a micro-batch save.

        Args:
            number: of the micro-batch. seed: of the batch that it is of, another for each of a step.
        """
        if seed not in self._batches:
            self._batches.append(seed)
        self._part, self._seed = (self._batches.index(seed), number), mixed(seed ^ _PURPOSE, number)
        try:
            yield
        finally:
            self._part = None
            self._blocks.clear()
            self._path.clear()

    def layer(self, index: int, arguments: Sequence[Tensor]) -> _Layer:
        """Return a context in which a layer runs on these arguments; outside of a micro-batch it does nothing."""
        return _Layer(self, index, arguments)

    def pack(self, tensor: Tensor) -> Packed:
        """Keep a tensor as one that the running layer saves; as it is outside of one."""
        return tensor if self._layer is None else self._layer.pack(tensor)

    def keep(self, tensor: Tensor, key: str, index: int) -> Packed:
        """Encode a tensor that a layer is to be given, for a second forward; as it is where it is left alone.

        Args:
            key: of its place: `in0`, ... for arguments. index: of the layer.
        """
        policy = self.policy
        if (
            not tensor.is_floating_point()
            or tensor.dim() < 2
            or tensor.numel() < policy.min_elements
            or not policy.encodes(self._names[index])
        ):
            return tensor
        return self._held(Kept(self._encode(tensor, index, key, len(tensor)), tensor, f"{index}/{key}"), tensor)

    def begin_with(self, packed: Packed, tensor: Tensor) -> None:
        """Say that a tensor was decoded from this, so that a layer which saves it keeps what there is."""
        if isinstance(packed, Held):
            packed.kept.replace(packed.kept.encoded, tensor, packed.kept.key)
            self._remember(tensor, packed.kept)

    def leave(self, tensor: Tensor) -> None:
        """Leave alone what is saved of a tensor's memory, since that stays in any case."""
        self._lasting[tensor.untyped_storage()._cdata] = tensor

    @property
    def device(self) -> torch.device:
        """Where its layers are."""
        return next((tensor.device for tensor in self._parameters), torch.device("cpu"))

    def commit(self) -> None:
        """End a step: ranges move."""
        self.running.commit()
        self._batches.clear()

    def forget(self) -> None:
        """Forget an unfinished step."""
        self.running.forget()
        self._batches.clear()

    def close(self) -> None:
        """Leave the modules as they were."""
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------------------------------------------------------------ inside

    def _follow(self, name: str, module: nn.Module) -> None:
        """Know at any time which part of a layer is running."""
        for local, part in module.named_modules():
            path = join(name, local)
            self._hooks += [
                part.register_forward_pre_hook(
                    lambda m, given, path=path: self._path.append((path, _largest(given), m))
                ),
                part.register_forward_hook(lambda *_: self._path and self._path.pop() and None, always_call=True),
            ]

    def _encode(self, tensor: Tensor, index: int, place: str, batch: int) -> Encoded:
        groups = activations.groups_of(tensor.shape, self.policy.groups, batch=batch, heads=self._heads.get(index))
        own = activations.own_range(tensor, groups)
        if self.policy.running:
            assert self._part is not None
            own = self.running.use(f"{index}/{place}", self._part, own)
        seed = None
        if self.policy.stochastic:
            seed = mixed(mixed(self._seed, index), _place_number(place))
        return activations.encode(tensor, groups, own, seed)

    def _remember(self, tensor: Tensor, kept: Kept, version: int | None = None) -> None:
        storage = tensor.untyped_storage()
        self._blocks[storage._cdata] = (StorageWeakRef(storage), tensor._version if version is None else version, kept)

    def _found(self, tensor: Tensor, version: int | None = None) -> Kept | None:
        """Return what this layer, or the one before for it, keeps of a tensor's memory as it is now.

        Args:
            version: of the tensor that this is a piece of: changes in place are counted there.
        """
        reference, known, kept = self._blocks.get(tensor.untyped_storage()._cdata, (None, 0, None))
        if kept is None or reference is None or reference.expired():
            return None
        if known != (tensor._version if version is None else version):
            return None
        return kept if kept.encoded.dtype == tensor.dtype and kept.covers(tensor) else None

    @staticmethod
    def _held(kept: Kept, tensor: Tensor) -> Held:
        return Held(kept, tensor.storage_offset(), tensor.shape, tensor.stride())


class _Layer:
    """One forward of one layer."""

    def __init__(self, saver: Saver, index: int, arguments: Sequence[Tensor]) -> None:
        self._saver, self._index = saver, index
        self._arguments = [saver.piece_of(argument).local for argument in arguments]
        self._largest = _largest(arguments)
        self._told = self._largest > 0
        self._batch = len(self._arguments[0]) if arguments and arguments[0].dim() else 1
        self._place = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, unpack)

    def __enter__(self) -> _Layer:
        self._on = self._saver._part is not None and torch.is_grad_enabled()
        if self._on:
            self._hooks.__enter__()
            self._saver._layer = self
        return self

    def __exit__(self, *failure: Any) -> None:
        if self._on:
            self._hooks.__exit__(*failure)
            self._saver._layer = None

    def returned(self, values: Any, num_skips: int = 0) -> Any:
        """Say what the layer returned, and return it: what it has saved of that is kept as the next one's input.

        Args:
            num_skips: how many of the values, the last ones, go elsewhere.
        """
        if not self._on:
            return values
        saver, following = self._saver, {}
        several = values if isinstance(values, tuple) else (values,)
        for place, value in enumerate(several[: len(several) - num_skips]):
            if not isinstance(value, Tensor):
                continue
            kept = saver._found(value)
            if kept is None or not kept.dense or extent(value) != kept.shape.numel() or value.dim() < 2:
                continue
            key = f"{self._index + 1}/in{place}"
            if kept.key != key:
                with torch.no_grad():
                    kept.replace(saver._encode(value, self._index + 1, f"in{place}", len(value)), value, key)
            following[value.untyped_storage()._cdata] = saver._blocks[value.untyped_storage()._cdata]
        saver._blocks = following
        return values

    def pack(self, tensor: Tensor) -> Packed | Laid:
        """Return what is kept of a tensor that an operation saves."""
        piece = self._saver.piece_of(tensor)
        packed = self._pack(tensor, piece.local, piece.name)
        if self._saver.watch is not None:
            self._saver.watch(piece.local, packed)
        return packed if piece.laid is None else Laid(packed, piece.laid)

    def _pack(self, tensor: Tensor, local: Tensor, piece: str) -> Packed:
        saver, policy, count = self._saver, self._saver.policy, tensor.numel()
        if tensor.dtype == torch.bool and count >= policy.min_elements:
            return Mask(activations.to_bits(local), local.shape)
        weight = weight_of(tensor, (part for _, _, part in saver._path))
        if weight is not None or not tensor.is_floating_point() or tensor.dim() < 2 or not count:
            return as_it_is(local, weight)
        self._place += 1
        if local.untyped_storage()._cdata in saver._lasting or not local.numel():
            return as_it_is(local)
        name, largest, _ = saver._path[-1] if saver._path else (saver._names[self._index], 0, None)
        if not self._told:
            self._largest = max(self._largest, count)
        if count < policy.min_elements or not policy.encodes(name):
            return as_it_is(local)
        kept = saver._found(local, tensor._version)
        if kept is not None:
            return saver._held(kept, local)
        if STATISTICS * count <= (largest or self._largest) or local.untyped_storage().nbytes() <= local.numel():
            return as_it_is(local)
        whole, place = self._argument(local)
        place += piece
        kept = Kept(saver._encode(whole, self._index, place, self._batch), whole, f"{self._index}/{place}")
        saver._remember(whole, kept, tensor._version)
        return saver._held(kept, local)

    def _argument(self, tensor: Tensor) -> tuple[Tensor, str]:
        """Return the argument whose memory a tensor is a view of, and its place; else the tensor and its own."""
        where = tensor.untyped_storage()._cdata
        for number, argument in enumerate(self._arguments):
            if argument.untyped_storage()._cdata == where and argument.dtype == tensor.dtype:
                same = argument.storage_offset() == tensor.storage_offset() and argument.numel() == tensor.numel()
                if same and argument.dim() > 1 and extent(argument) == extent(tensor) == tensor.numel():
                    return argument, f"in{number}"
        return tensor, str(self._place)


_PURPOSE = 0x6D656D6F72792E71
"""Sets the seeds of rounding apart from those of layers, which come from the same seed of a batch."""


def mixed(seed: int, number: int) -> int:
    """Return a seed for one of many numbers: splitmix64, as `trainers.pipeline.chunk.layer_seed`."""
    value = (seed + 0x9E3779B97F4A7C15 * (1 + number)) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


@lru_cache(maxsize=4096)
def _place_number(place: str) -> int:
    return int(place) if place.isdigit() else (1 << 32) + purpose_word(place)


def _largest(arguments: Any) -> int:
    """Return how many numbers the largest floating-point argument has; 0 where there is none."""
    given = (tensor for tensor in arguments if isinstance(tensor, Tensor) and tensor.is_floating_point())
    return max((tensor.numel() for tensor in given), default=0)
