"""torch's optimizers without torch's compiler, which a process that makes one would import: a second, and 70 MB.

`Optimizer.add_param_group` and its like import `torch._dynamo` to keep it out of themselves, and every `step` to tell
it where graphs end. Workers compile no step, and are started often; for them the functions are called as they stand.
A process that has the compiler already, as with a user's `torch.compile` at the top of a module, is left as it is.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


@functools.cache
def spare_compiler() -> None:
    """Let optimizers be made and stepped without the compiler in this process; the same sums, to the bit."""
    if "torch._dynamo" in sys.modules:
        return
    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        plain = inspect.unwrap(method)
        plain.__dict__.setdefault("__dynamo_disable", plain)  # where torch keeps what the compiler would make of it
    for kind in vars(torch.optim).values():
        step = vars(kind).get("step") if inspect.isclass(kind) else None
        if inspect.isfunction(step) and step.__code__.co_name == "_use_grad":
            kind.step = _uncompiled(inspect.unwrap(step))


def _uncompiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return what torch makes of an optimizer's step, but for breaks in graphs that nobody draws."""

    @functools.wraps(step)
    def stepped(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return stepped
