"""Parameters among what autograd saves: they are no activations, and are never rounded.

At stage 3 of ZeRO a parameter is whole only while a module that has it runs. A view of it, such as `weight.t()`, kept
as it is, would keep the whole one until backward; so what is kept is which view of which parameter it was, and backward
takes it from the parameter, which is whole again while backward goes through the same module. Where it is not, it is
gathered for as long as it is copied: every rank does the same there, as in DeepSpeed's own linear layer.

Source: DeepSpeed 0.19, `runtime/zero/partition_parameters.py`: `ds_status`, `ds_active_sub_modules`, `all_gather`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Gathered(NamedTuple):
    """A view of a parameter that is not always whole.

    Args:
        offset: from the parameter's own first number.
    """

    parameter: Any
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]

    @property
    def block(self) -> object:
        """What the bytes belong to."""
        return self.parameter

    @property
    def num_bytes(self) -> int:
        return 0

    def get(self) -> Tensor:
        """Return the view, of the parameter as it is now."""
        if self.parameter.ds_status.name == "AVAILABLE":
            return self._view()
        self.parameter.all_gather()
        try:
            return self._view().clone()
        finally:
            self.parameter.partition()

    def _view(self) -> Tensor:
        whole = self.parameter.detach()
        return whole.as_strided(self.shape, self.stride, whole.storage_offset() + self.offset)


def weight_of(tensor: Tensor, running: Iterable[nn.Module] = ()) -> nn.Parameter | None:
    """Return the parameter that a tensor is, or is a view of, or is in another type, as autocast makes them.

    Args:
        running: modules; views of their own parameters' memory are found without a trace in autograd too.
    """
    if isinstance(tensor, nn.Parameter):
        return tensor
    if isinstance(tensor._base, nn.Parameter):
        return tensor._base
    node = tensor.grad_fn
    while node is not None and type(node).__name__ in _SAME_NUMBERS:
        node = node.next_functions[0][0]
    variable = getattr(node, "variable", None)
    if isinstance(variable, nn.Parameter):
        return variable
    where = tensor.untyped_storage()._cdata
    for module in running:
        for parameter in module.parameters(recurse=False):
            if parameter.untyped_storage()._cdata == where:
                return parameter
    return None


def as_it_is(tensor: Tensor, parameter: Any = None) -> Tensor | Gathered:
    """Return what an operation may keep of a tensor that is left alone.

    Its own output, kept as itself, would never be freed.

    Args:
        parameter: that it is, or comes from.
    """
    if tensor is not parameter and getattr(parameter, "ds_active_sub_modules", None):
        whole = parameter.detach()
        offset = tensor.storage_offset() - whole.storage_offset()
        if tensor.untyped_storage()._cdata == whole.untyped_storage()._cdata and tensor.dtype == whole.dtype:
            return Gathered(parameter, offset, tensor.shape, tensor.stride())
    return tensor if tensor.is_leaf else tensor.detach()


_SAME_NUMBERS = frozenset(
    f"{name}Backward0" for name in ("ToCopy", "T", "Transpose", "Permute", "View", "UnsafeView", "Alias", "Clone")
)
"""Operations of autograd that leave the numbers what they are, but for their type."""
