"""LARS: momentum descent in which each tensor has a rate of its own, proportional to |w| / |g|.

Source: You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks" (arXiv:1708.03888),
Algorithm 1 and equation 6, from memory and from descriptions of others, not read in the paper itself. With weights w,
gradient g, momentum m, weight decay b and trust coefficient c:

    rate = c |w| / (|g| + b |w|)       v = m v + lr rate (g + b w)       w = w - v

The rate is inside the momentum, so that a change of `lr` does not act on steps of before. Where |w| or the sum below
it is zero the rate is 1. Biases and normalisation layers have b = 0 and rate 1 by convention; the paper gives every
layer its own. Its polynomial decay of `lr` is the experiment's `learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from strategies.optimizers.layerwise import VECTORS, Item, Layerwise


class Lars(Layerwise):
    """LARS as an optimizer of torch.

    Args:
        params: parameters, named ones, or groups; see `Layerwise`.
        lr, momentum, weight_decay, trust: as above, `trust` being c.
        exclude, exclude_adaptation: as of `Lamb`.

    Raises:
        ValueError: when an argument is out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        exclude: str | None = VECTORS,
        exclude_adaptation: str | None = None,
    ) -> None:
        if not (lr >= 0 and weight_decay >= 0 and trust > 0):
            raise ValueError(f"lr {lr} and weight_decay {weight_decay} must be at least 0, trust {trust} above 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum {momentum} must be from 0 to below 1")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "exclude": exclude,
            "exclude_adaptation": exclude_adaptation,
        }
        super().__init__(params, defaults)

    slots = ("momentum_buffer",)

    def first(self, items: Sequence[Item]) -> list[Tensor]:
        """Return the gradients."""
        return [item.gradient for item in items]

    def ratios(self, group: Mapping[str, Any], decay: float, weight: float, other: float) -> float:
        """Return c |w| / (|g| + b |w|)."""
        below = other + decay * weight
        return group["trust"] * weight / below if weight > 0 and below > 0 else 1.0

    def second(self, items: Sequence[Item], found: list[Tensor], ratios: Sequence[float]) -> None:
        """Move the weights by the momentum."""
        group = items[0].group
        rates = [group["lr"] * ratio for ratio in ratios]
        moved = list(torch._foreach_mul(found, rates))
        decaying = [place for place, item in enumerate(items) if item.decay]
        if decaying:
            pulls = torch._foreach_mul(
                [items[place].weight for place in decaying],
                [rates[place] * group["weight_decay"] for place in decaying],
            )
            torch._foreach_add_([moved[place] for place in decaying], pulls)
        momenta = [item.slots[0] for item in items]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, moved)
        torch._foreach_sub_([item.weight for item in items], momenta)
