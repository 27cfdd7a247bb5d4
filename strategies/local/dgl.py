"""Decoupled greedy learning: every unit a module, judged by a small network of its own width.

Source: Belilovsky, Eickenberg, Oyallon, "Decoupled Greedy Learning of CNNs", ICML 2020 (arXiv:1901.08164), Algorithm 1
with the auxiliary networks MLP-SR of section 4.2:

    pool to ceil(s/4) x ceil(s/4);  3 times 1x1 convolution, BatchNorm, ReLU, all C wide;  pool to 2 x 2;
    `hidden` times an affine map of 4C to 4C, BatchNorm, ReLU;  affine map to the classes

`hidden` is 2 in AugLocal's port, which its comparisons and the parameter counts here are of; DGL's own program has 3
(github eugenium/DGL). Hidden affine maps have no bias, since a BatchNorm follows. Deviations: ceil(s/4) is taken of
height and width each; a vector or a sequence, whose mean is taken, meets the hidden affine maps at once. The ring
buffer of Algorithm 2 is a way to run, not a rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn
from torch.nn.functional import cross_entropy

from strategies.local.auxiliary import flat, like
from strategies.local.base import LocalRule
from strategies.local.cuts import Auxiliary
from strategies.local.supervised import Modules, grouping
from strategies.local.supervised import build as supervised
from strategies.local.units import Shape


def build(hidden: int = 2, modules: Modules = "each") -> LocalRule:
    """Return the rule.

    Args:
        hidden: hidden affine maps of an auxiliary network.
        modules: `each`, one a unit; how many, cut by cost; or the units of each.
    """
    if hidden < 0:
        raise ValueError(f"hidden must be at least 0, got {hidden}")

    def auxiliaries(units: Sequence[nn.Module], made: Sequence[Shape], num_classes: int, num_modules: int) -> Auxiliary:
        return Auxiliary(lambda index, end: like(units, mlp_sr(made[end], num_classes, hidden)), lambda index: None)

    return supervised("dgl", auxiliaries, cross_entropy, grouping(modules))


def mlp_sr(shape: Shape, num_classes: int, hidden: int) -> nn.Module:
    """Return the auxiliary network for an activation of a shape."""
    if len(shape) == 3:
        channels, *size = shape
        small = [math.ceil(side / 4) for side in size]
        smaller = [min(side, 2) for side in small]
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(tuple(small))]
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(tuple(smaller)), nn.Flatten()]
        features = channels * math.prod(smaller)
    else:
        layers, features = flat(shape)
    for _ in range(hidden):
        layers += [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(features, num_classes))
