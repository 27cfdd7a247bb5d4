"""Learning rates as functions of the step, so that a resumed run needs no scheduler's state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


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
