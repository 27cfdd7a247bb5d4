"""Learning rates as functions of the step, so that a resumed run needs no scheduler's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer


def factor(section: Mapping[str, Any], step: int, num_steps: int) -> float:
    """Return what the learning rate is multiplied by at a step.

    Args:
        section: `name`: constant, linear (to `final`) or cosine (to `final`); `warmup_steps`: steps of a linear rise
            before; `final`: the factor at the last step.
        step: 1-based. num_steps: of the whole run.

    Source: warm-up of Goyal et al. 2017, arXiv:1706.02677, section 2.2; cosine of Loshchilov and Hutter 2017,
        arXiv:1608.03983, equation 5, one period.
    """
    warmup = section["warmup_steps"]
    if step <= warmup:
        return step / (warmup + 1)
    if section["name"] == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    if section["name"] == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return 1 + (float(section["final"]) - 1) * progress


class Rates:
    """Sets the learning rates of an optimizer's groups: those that they have now, times `factor` of the step.

    Args:
        section, num_steps: as of `factor`.
    """

    def __init__(self, optimizer: Optimizer, section: Mapping[str, Any], num_steps: int) -> None:
        self._optimizer, self._section, self._num_steps = optimizer, section, num_steps
        self._base = [group["lr"] for group in optimizer.param_groups]

    def set(self, step: int) -> None:
        """Set the rates of step `step`, from 1."""
        now = factor(self._section, step, self._num_steps)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * now
