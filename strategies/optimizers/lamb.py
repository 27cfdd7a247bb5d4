"""LAMB: Adam's direction, scaled so that each tensor's step is as long as its weights times the rate.

Source: You et al. 2020, "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
(arXiv:1904.00962), Algorithm 2. With weights w, gradient g, step t and weight decay l:

    m = b1 m + (1 - b1) g              v = b2 v + (1 - b2) g^2
    r = (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    u = r + l w                        w = w - lr phi(|w|) / |u| u

phi is the identity as in the authors' code, or clips (`clip`). Where phi(|w|) or |u| is zero the ratio is 1, as in
their code; the paper does not say. Biases and normalisation layers have l = 0 and ratio 1, a convention that the
paper's text leaves out; what is left out of the one is left out of the other. With ratio 1 everywhere this is AdamW.

Tuned Adam reaches the same quality at these batch sizes (Nado et al. 2021, arXiv:2102.06356): an option, not a gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from strategies.optimizers.layerwise import VECTORS, Item, Layerwise


class Lamb(Layerwise):
    """LAMB as an optimizer of torch.

    Args:
        params: parameters, named ones, or groups; see `Layerwise`.
        lr, betas, eps, weight_decay: as above; eps as in the authors' code, the decay as in the paper's experiments.
        clip: `(low, high)`: phi(z) = min(max(z, low), high).
        exclude: tensors with neither decay nor a ratio: `"vectors"` (at most one dimension), a regular expression
            that is searched for in their names, or None. exclude_adaptation: further ones with ratio 1.

    Raises:
        ValueError: when an argument is out of its range.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        clip: Sequence[float] | None = None,
        exclude: str | None = VECTORS,
        exclude_adaptation: str | None = None,
    ) -> None:
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0):
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must be at least 0")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas} must be two numbers from 0 to below 1")
        if clip is not None and not (len(clip) == 2 and 0 <= clip[0] <= clip[1] and clip[1] > 0):
            raise ValueError(f"clip {clip} must be [low, high] with 0 <= low <= high")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "clip": None if clip is None else tuple(clip),
            "exclude": exclude,
            "exclude_adaptation": exclude_adaptation,
        }
        super().__init__(params, defaults)

    def first(self, items: Sequence[Item]) -> list[Tensor]:
        """Return the directions u, and remember the moments."""
        group = items[0].group
        m, v = ([item.slots[index] for item in items] for index in range(2))
        u = [torch.zeros_like(each) for each in m]
        adam(  # moves zeros by r at the rate -1: all that comes before u in one pass over memory
            u,
            [item.gradient for item in items],
            m,
            v,
            [],
            [torch.tensor(item.step - 1.0, device=item.weight.device) for item in items],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=-1.0,
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        decaying = [place for place, item in enumerate(items) if item.decay]
        if decaying:
            own = [items[place].weight for place in decaying]
            torch._foreach_add_([u[place] for place in decaying], own, alpha=group["weight_decay"])
        return u

    def ratios(self, group: Mapping[str, Any], decay: float, weight: float, other: float) -> float:
        """Return phi(|w|) / |u|."""
        phi = weight if group["clip"] is None else min(max(weight, group["clip"][0]), group["clip"][1])
        return phi / other if phi > 0 and other > 0 else 1.0

    def second(self, items: Sequence[Item], found: list[Tensor], ratios: Sequence[float]) -> None:
        """Move the weights along u."""
        torch._foreach_mul_(found, [items[0].group["lr"] * ratio for ratio in ratios])
        torch._foreach_sub_([item.weight for item in items], found)
