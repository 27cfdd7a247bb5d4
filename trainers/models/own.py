"""Users' own models: a function or class that returns a module, called with its keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trainers.models.base import ModelError
from trainers.targets import TargetError, resolve


def build(target: str, kwargs: Mapping[str, Any], *, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Call `package.module:function` and return the module it made.

    Its parameters `input_shape` and `num_classes`, where it has them and the keyword arguments do not, receive the
    data set's.

    Raises:
        ModelError: when the function cannot be found or called, or returns no module with parameters.
    """
    try:
        function = resolve(target)
    except TargetError as error:
        raise ModelError(error.message, error.hint) from error
    given = dict(kwargs)
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    try:
        signature = inspect.signature(function)
        given = {**{key: value for key, value in offered.items() if key in signature.parameters}, **given}
        signature.bind(**given)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"target {target!r} cannot be called with {sorted(given)}: {error}",
            "correct model.kwargs or its parameters",
        ) from error
    try:
        model = function(**given)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"target {target!r} raised {type(error).__name__}: {error}", f"it was called with {given}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"target {target!r} returned {type(model).__name__}", "return a torch.nn.Module")
    if next(model.parameters(), None) is None:
        raise ModelError(f"target {target!r} returned a module without parameters", "there is nothing to train")
    return model


def may_have_logits(model: nn.Module) -> bool:
    """Return whether an output may be an object with `logits`: torch's own layers return none.

    Models of those alone get no hook, with which `trainers.batched` could not differentiate them by hand.
    """
    return any(not type(module).__module__.startswith("torch.nn.") for module in model.modules())


def logits(model: nn.Module, args: Any, output: Any) -> Any:
    """Return the logits of an output that has them beside other things, as those of Hugging Face's models do."""
    return output if isinstance(output, Tensor) else getattr(output, "logits", output)
