"""PredSim: predict the labels, and let examples of one class be alike and those of different classes not.

Source: Nøkland, Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019 (arXiv:1901.06656), section 2:

    loss = (1 - beta) CE(W h, y) + beta mean((S(V h) - S(onehot y))^2),   beta = 0.99

where S is the cosine similarity of every two examples of the batch after each one's mean is taken off, V a 3x3
convolution of the same width (of a vector: an affine map without bias), whose output counts by its standard deviation
over places, and W h the labels' scores after average pooling to at most `features` numbers. The last module has the
cross-entropy alone. This is the paper's predsim without its later variants (binarised targets, no convolution).

Deviations: pooled sizes are adaptive, so that borders of sizes that are no power of two are not padded with zeros; a
sequence counts by its mean. The similarity's gradient at an example that is the same everywhere is 0, not NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from strategies.local.auxiliary import flat, like
from strategies.local.base import LocalRule
from strategies.local.cuts import Auxiliary
from strategies.local.supervised import Modules, grouping
from strategies.local.supervised import build as supervised
from strategies.local.units import Shape


def build(beta: float = 0.99, features: int = 4096, modules: Modules = "each") -> LocalRule:
    """Return the rule.

    Args:
        beta: share of the similarity loss.
        features: most numbers that an image is pooled to before its labels are predicted.
        modules: `each`, one a unit; how many, cut by cost; or the units of each.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be from 0 to 1, got {beta}")
    if features < 1:
        raise ValueError(f"features must be at least 1, got {features}")

    def auxiliaries(units: Sequence[nn.Module], made: Sequence[Shape], num_classes: int, num_modules: int) -> Auxiliary:
        return Auxiliary(lambda index, end: like(units, PredSim(made[end], num_classes, features)), lambda index: None)

    def criterion(judged: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        scores, seen = judged
        wanted = similarity(one_hot(targets, scores.shape[1]).to(seen.dtype))
        return (1 - beta) * cross_entropy(scores, targets) + beta * mse_loss(similarity(seen), wanted)

    return supervised("predsim", auxiliaries, criterion, grouping(modules))


class PredSim(nn.Module):
    """The two small networks of a module: what predicts the labels, and what similarity is measured on."""

    def __init__(self, shape: Shape, num_classes: int, features: int) -> None:
        super().__init__()
        if len(shape) == 3:
            size = pooled(shape, features)
            pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(size), nn.Flatten()] if size != shape[1:] else [nn.Flatten()]
            self.predict = nn.Sequential(*pool, nn.Linear(shape[0] * math.prod(size), num_classes))
            self.compare: nn.Module = nn.Conv2d(shape[0], shape[0], 3, padding=1, bias=False)
        else:
            mean, width = flat(shape)
            self.predict = nn.Sequential(*mean, nn.Linear(width, num_classes))
            self.compare = nn.Sequential(*mean, nn.Linear(width, width, bias=False))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels' scores `[B, C]` and what similarity is measured on `[B, ...]`."""
        return self.predict(hidden), self.compare(hidden)


def similarity(x: Tensor) -> Tensor:
    """Return the cosine similarity of every two rows after each one's mean is taken off.

    Images of more than 3 channels and 1 row count by their channels' standard deviation over places.

    Shapes: x `[B, ...]`, result `[B, B]`.
    """
    if x.dim() == 4:
        x = x.flatten(2).std(dim=2) if x.shape[1] > 3 and x.shape[2] > 1 else x.flatten(1)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (1e-8 + torch.linalg.vector_norm(x, dim=1, keepdim=True))
    return (x @ x.T).clamp(-1, 1)


def pooled(shape: Shape, features: int) -> tuple[int, int]:
    """Return height and width, halved in turn until an image of so many channels has at most `features` numbers."""
    channels, height, width = shape
    small = [height, width]
    by = [1, 1]
    side = 0
    while channels * math.prod(small) > features and max(small) > 1:
        by[side] *= 2
        small[side] = math.ceil((height, width)[side] / by[side])
        side = 1 - side
    return small[0], small[1]
