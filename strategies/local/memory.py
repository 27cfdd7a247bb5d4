"""How many bytes autograd keeps for backward passes, now and at most: what local learning is meant to save.

Counted is the memory of the tensors that operations save, each block once, from when it is saved until it is let go.
Left out are parameters and buffers, gradients, an optimizer's state, and what an operation needs only while it runs:
so this is less than what a device reports as used, and savings in it are larger than there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class Block(Protocol):
    """A tensor in another form: a view of a `block`, which may be shared, of `num_bytes`."""

    @property
    def block(self) -> object: ...
    @property
    def num_bytes(self) -> int: ...
    def get(self) -> Tensor:
        """Return the tensor."""
        ...


class Packing(Protocol):
    """What keeps tensors in another form; `trainers.activations` has one."""

    def pack(self, tensor: Tensor) -> Tensor | Block:
        """Return what is kept of a tensor that an operation saves."""
        ...


class Saved:
    """Counts what autograd saves inside a `with` block.

        with Saved(modules) as saved:
            train_batch(...)
        saved.peak_bytes

    Args:
        modules: whose parameters and buffers do not count.
        packing: what is kept in place of a tensor, where that is not the tensor itself; then this counts.
    """

    def __init__(self, modules: Iterable[nn.Module], packing: Packing | None = None) -> None:
        tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
        self._left_out = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self._times: Counter[int] = Counter()
        self._packing = packing
        self._hooks = saved_tensors_hooks(self._keep, self._read)
        self.now_bytes = 0
        self.peak_bytes = 0

    def __enter__(self) -> Saved:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _keep(self, tensor: Tensor) -> _Held:
        packed = tensor if self._packing is None else self._packing.pack(tensor)
        if isinstance(packed, Tensor):
            where, num_bytes = packed.untyped_storage().data_ptr(), packed.untyped_storage().nbytes()
        else:
            where, num_bytes = id(packed.block), packed.num_bytes
        if where in self._left_out or not num_bytes:
            return _Held(packed, None, 0, 0)
        self._times[where] += 1
        if self._times[where] == 1:
            self.now_bytes += num_bytes
            self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        return _Held(packed, self, where, num_bytes)

    def _read(self, held: _Held) -> Tensor:
        return held.packed if isinstance(held.packed, Tensor) else held.packed.get()

    def let_go(self, where: int, num_bytes: int) -> None:
        """Count one fewer who keeps a block."""
        self._times[where] -= 1
        if not self._times[where]:
            self.now_bytes -= num_bytes


class _Held:
    """A saved tensor; autograd drops it when its operation's backward is done, or never will be."""

    def __init__(self, packed: Tensor | Block, saved: Saved | None, where: int, num_bytes: int) -> None:
        self.packed, self._saved, self._where, self._num_bytes = packed, saved, where, num_bytes

    def __del__(self) -> None:
        if self._saved is not None:
            self._saved.let_go(self._where, self._num_bytes)


def backward_bytes(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Return the most bytes kept while a model is trained on a batch by backpropagation through all of it.

    Args:
        x, y: examples `[B, ...]` and classes `[B]`. Gradients and statistics of the model are moved.
    """
    with Saved([model]) as saved:
        torch.nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    return saved.peak_bytes
