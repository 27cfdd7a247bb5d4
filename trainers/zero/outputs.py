"""Modules that return objects, at stage 3: DeepSpeed looks for tensors in tuples, lists and dictionaries only.

It learns from the tensors that a module returns when the module's backward begins, and fetches the parameters that the
module uses itself. In an object it finds none, and backward meets empty parameters. So while its hooks run they are
shown the object's own dictionary, in which they put what they make of each tensor, and afterwards the object is back.
Left out: objects with `__slots__`, which have no dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

_UNDERSTOOD = (Tensor, tuple, list, dict, type(None))


@contextmanager
def opened(model: nn.Module) -> Iterator[None]:
    """Show what modules return as dictionaries to hooks that are registered in this block."""
    under_way: list[Any] = []

    def show(module: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, _UNDERSTOOD) or not hasattr(output, "__dict__"):
            return None
        under_way.append(output)
        return vars(output)

    def put_back(module: nn.Module, inputs: Any, output: Any) -> Any:
        if under_way and output is vars(under_way[-1]):
            return under_way.pop()
        return None

    for module in model.modules():
        module.register_forward_hook(show)
    yield
    for module in model.modules():
        module.register_forward_hook(put_back)
