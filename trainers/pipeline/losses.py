"""What a pipeline minimises: cross-entropy, or a user's own function of what the model returns and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers.local import loss_of
from trainers.pipeline.chunk import Loss
from trainers.targets import resolve


def build(section: Mapping[str, Any]) -> Loss:
    """Return the loss of a micro-batch.

    Args:
        section: `reduction`: `mean` or `sum` over a batch; `target`: `module:function` called with what the model
            returned and the targets, and reducing in the same way; None for cross-entropy.
    """
    if section.get("target"):
        function = resolve(section["target"])
        return lambda returned, targets: function(returned, targets)
    reduction = section["reduction"]
    return lambda returned, targets: loss_of(returned, targets, reduction)


def weight(reduction: str, size: int, total: int) -> float:
    """Return what a micro-batch's loss is multiplied by, so that the sum over micro-batches is the batch's loss.

    Args:
        size, total: examples of the micro-batch, and of all batches of the optimizer step.
    """
    return size / total if reduction == "mean" else 1.0
