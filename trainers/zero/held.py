"""What a rank really holds of parameters, gradients and optimizer states: bytes of storages, each counted once.

The ZeRO formulas (Rajbhandari et al. 2020, arXiv:1910.02054, section 5) count elements; DeepSpeed adds padding, copies
for its own use, and parameters too small to be cut. Here storages are counted as they are, whoever views them:

    parameters      what the forward pass reads: whole ones, or this rank's parts, with those kept whole
    gradients       what is there between backward and update; at the time of asking, so ask then
    optimizer       copies in full precision of what is moved, and what is remembered of it
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from trainers.zero.fragments import basic, fragments


def measured(engine: Any) -> dict[str, int]:
    """Return `parameters`, `gradients`, `master` and `optimizer`, in bytes, as they are now.

    `master` are full-precision copies of what is moved, as far as they are not the parameters themselves.
    """
    model, zero = engine.module, engine.optimizer
    parameters: list[Any] = list(model.parameters())
    optimizer = basic(zero)
    moved = [found.moved for found in fragments(engine)]
    weights = [p.data for p in parameters] + [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]
    seen: set[int] = set()
    return {
        "parameters": _bytes(weights, seen),
        "master": _bytes(moved, seen),
        "optimizer": _bytes((v for state in optimizer.state.values() for v in _tensors(state)), seen),
        "gradients": _bytes(_gradients(zero, parameters, moved), seen),
    }


def _gradients(zero: Any, parameters: Iterable[Any], moved: Iterable[Any]) -> Iterable[Tensor]:
    for tensor in (*parameters, *moved):
        if tensor.grad is not None:
            yield tensor.grad
    for name in ("averaged_gradients", "grad_partitions_flat_buffer", "fp32_groups_gradients_flat"):
        yield from _tensors(getattr(zero, name, None))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _bytes(tensors: Iterable[Any], seen: set[int]) -> int:
    """Add up storages that were not counted yet."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total
