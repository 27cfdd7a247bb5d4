"""Parameters that training leaves alone: those whose names a pattern finds, whoever builds the model.

A frozen BatchNorm normalises by the statistics it was given and does not move them, whatever the mode of the model
around it: training loops call `model.train()`, and with it a body meant to stay as it is would drift with every batch.
Left out: dropout, which goes on dropping in a frozen part.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainers.models.base import ModelError


def freeze(model: nn.Module, pattern: str) -> list[str]:
    """Freeze the parameters in whose names the pattern is found; return their names.

    A BatchNorm is frozen with all its parameters, or, where it has none, when the pattern finds its statistics.

    Raises:
        ModelError: when the pattern is no regular expression, finds no parameter, or leaves none to be trained.
    """
    names = [name for name, _ in model.named_parameters()]
    try:
        found = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        told = f"freeze is {pattern!r}, which is no regular expression: {error}"
        raise ModelError(told, f"names are {_some(names)}") from error
    if not found:
        raise ModelError(f"freeze is {pattern!r}, which finds no parameter", f"names are {_some(names)}")
    if len(found) == len(names):
        hint = "let model.pretrain.freeze leave out the output layer"
        raise ModelError(f"freeze is {pattern!r}, which finds all parameters: nothing is left to train", hint)
    parameters = dict(model.named_parameters())
    for name in found:
        parameters[name].requires_grad_(False)
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and _is_frozen(module, path, pattern):
            module.register_forward_pre_hook(_stay)
    return found


def _is_frozen(norm: _BatchNorm, path: str, pattern: str) -> bool:
    own = list(norm.parameters(recurse=False))
    if own:
        return not any(parameter.requires_grad for parameter in own)
    return norm.track_running_stats and bool(re.search(pattern, f"{path}.running_mean"))


def _stay(module: nn.Module, inputs: Any) -> None:
    """Before each forward; a hook is copied and pickled with its module, and no call of `train()` undoes it."""
    module.training = False


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
