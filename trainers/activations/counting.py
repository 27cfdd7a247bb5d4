"""Bytes that a model's forward pass would keep, counted by a pass of shapes without memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from strategies import activations
from strategies.activations import Encoded, Range
from trainers.activations.packed import Packed
from trainers.activations.saver import Saver


class _Shapes(Saver):
    """Encodes shapes: no number is looked at, and no tensor without memory is remembered for later."""

    def _encode(self, tensor: Tensor, index: int, place: str, batch: int) -> Encoded:
        groups = activations.groups_of(tensor.shape, self.policy.groups, batch=batch, heads=self._heads.get(index))
        levels, none = torch.empty_like(tensor, dtype=torch.uint8), torch.empty(0)
        return Encoded(levels, groups, Range(none, none), tensor.dtype)


class Counting:
    """Counts while `count` is entered.

    Args:
        memory: the experiment's section, or None. model: that runs. own: tensors that stay in any case.

    Attributes:
        plain_bytes: kept without a `memory` section. kept_bytes: kept with it.
    """

    def __init__(self, memory: Mapping[str, Any] | None, model: nn.Module, own: Iterable[Tensor]) -> None:
        self.plain_bytes = self.kept_bytes = 0
        self._memory, self._model = memory, model
        self._own = {tensor.untyped_storage()._cdata: tensor for tensor in own}
        self._seen: dict[int, Tensor] = {}  # held, so that no storage's address is used again
        self._blocks: dict[int, object] = {}

    @contextmanager
    def count(self, *inputs: Tensor) -> Iterator[None]:
        """Count what is saved within: the model's forward pass on inputs; without any, what is kept as it is."""
        if self._memory is None or not inputs:
            with torch.autograd.graph.saved_tensors_hooks(self._plain, lambda tensor: tensor):
                yield
            return
        saver = _Shapes(self._memory, {0: ("", self._model)}, parts=True)
        saver.watch = self.watch
        for tensor in self._own.values():
            saver.leave(tensor)
        try:
            with saver.microbatch(0, 0), saver.layer(0, inputs):
                yield
        finally:
            saver.close()

    def _plain(self, tensor: Tensor) -> Tensor:
        self.watch(tensor, tensor)
        return tensor

    def watch(self, tensor: Tensor, packed: Packed) -> None:
        """Count what is kept of a tensor."""
        storage = tensor.untyped_storage()
        known = storage._cdata in self._own
        new = not known and storage._cdata not in self._seen
        self._seen.setdefault(storage._cdata, tensor.detach())
        self.plain_bytes += storage.nbytes() if new else 0
        if isinstance(packed, Tensor):
            block: object = storage
            key, num_bytes = storage._cdata, 0 if known else storage.nbytes()
        else:
            block = packed.block
            key, num_bytes = id(block), packed.num_bytes
        if key not in self._blocks:
            self._blocks[key] = block  # held, as above
            self.kept_bytes += num_bytes
