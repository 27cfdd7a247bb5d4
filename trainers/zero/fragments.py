"""Which elements of which parameters a rank moves, and where they lie in what its optimizer is given.

    stage 0      every rank moves all: the optimizer has the parameters themselves, or in bf16 a float32 copy of each
    stage 1, 2   parameters are laid end to end and cut into equal runs, one a rank
    stage 3      each parameter is cut into equal runs, one a rank; a rank's runs are laid end to end

Names say nothing about ranks or stages, so what one layout wrote any other reads (`state.py`), and an optimizer that
needs norms of whole tensors knows what is a part of what.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Fragment(NamedTuple):
    """Elements `[start, start + length)` of the flattened parameter `name`.

    Args:
        shape: of the whole parameter. moved: the tensor of the optimizer that has them, as of `[offset, ...)` of its
            elements. parameter: the model's own, which at stage 3 is not whole.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    moved: Tensor
    offset: int
    parameter: Tensor

    @property
    def values(self) -> Tensor:
        """The elements, in full precision and in place. Shapes: `[length]`."""
        return self.of(self.moved)

    def of(self, like: Tensor) -> Tensor:
        """Return these elements of a tensor laid out as `moved` is: of what the optimizer remembers."""
        return like.detach().view(-1)[self.offset : self.offset + self.length]


def fragments(engine: Any) -> list[Fragment]:
    """Return what this rank's optimizer moves, in the order of the model's parameters; nothing frozen."""
    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    if engine.zero_optimization_stage() == 3:
        return list(_of_partitions(engine.optimizer, named))
    if any(getattr(parameter, "_hp_mapping", None) is not None for _, parameter in named):
        return list(_of_runs(engine.optimizer, named))
    return list(_of_all(engine.optimizer, named))


def is_shared(engine: Any) -> bool:
    """Tell whether every rank moves all parameters."""
    return bool(engine.zero_optimization_stage() == 0)


def basic(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer below what DeepSpeed puts round it."""
    while not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _of_partitions(zero: Any, named: list[tuple[str, Any]]) -> Iterator[Fragment]:
    for name, parameter in named:
        group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
        start = zero._get_param_partition_rank(parameter) * size
        length = min(size, parameter.ds_numel - start)
        if length > 0:
            moved = zero.fp32_partitioned_groups_flat[group]
            yield Fragment(name, tuple(parameter.ds_shape), start, length, moved, offset, parameter)


def _of_runs(zero: Any, named: list[tuple[str, Any]]) -> Iterator[Fragment]:
    for name, parameter in named:
        mapping = parameter._hp_mapping
        if mapping is None:  # all of it is other ranks'
            continue
        place, own = mapping.hp_fragment_address, mapping.lp_fragment_address
        moved = basic(zero).param_groups[mapping.param_group_index]["params"][0]
        yield Fragment(name, tuple(parameter.shape), own.start, own.numel, moved, place.start, parameter)


def _of_all(optimizer: Any, named: list[tuple[str, Any]]) -> Iterator[Fragment]:
    copies: dict[int, Tensor] = {}
    for low, high in zip(getattr(optimizer, "fp16_groups", ()), getattr(optimizer, "fp32_groups", ()), strict=True):
        copies.update(zip(map(id, low), high, strict=True))
    for name, parameter in named:
        moved = copies.get(id(parameter), parameter)
        yield Fragment(name, tuple(parameter.shape), 0, parameter.numel(), moved, 0, parameter)
