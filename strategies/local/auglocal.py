"""AugLocal: each module's auxiliary network has the architecture of units spread evenly over the rest of the model.

Source: Ma, Wu, Si, Tan, "Scaling Supervised Local Learning with Augmented Auxiliary Networks", ICLR 2024
(arXiv:2402.17318), section 3, with what its authors' program settles (github ChenxiangMA/AugLocal, `train.py` and
`networks/`). Of n units, numbered from 0, and a maximum depth d:

    modules   units 0 .. n-d-2 are a module each; the d+1 units that are left, with the head, are the last
    depth     d_i = max(1, round(d (1 - tau i/(K-2)) + tau i/(K-2) d_min)),  i = 0 .. K-2,  K = n - d
    units     of module with last unit l:  round(l + (n-1-l)/d_i j),  j = 1 .. d_i;  all that are left if d_i >= n-1-l
    network   these units' architecture, fresh; a halving of the image for each doubling of channels; mean; affine map
    loss      cross-entropy, weight 1; the last module's is the model's own

Rounding is half to even, as in the authors' program; half up gives other networks. A BatchNorm precedes the affine map
where d_i is 1. The ImageNet experiments have neither a pyramid (`decay=0`) nor a smaller K (`modules="each"`).

Beyond the paper: `modules=N` makes N modules of any number of units, one auxiliary network a worker, cut so that the
costliest module costs least (`cuts.py`), and `modules=[a, b, ...]` modules of so many units; of a model that is no
residual network or VGG, units are adapted (`auxiliary.py`). Rate schedules, weight decay and augmentation are the
caller's; published for CIFAR-10: SGD with Nesterov momentum 0.9, weight decay 1e-4, batch 1024, rate 0.8 with a cosine
over 400 epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.nn.functional import cross_entropy

from strategies.local.auxiliary import network
from strategies.local.base import LocalRule
from strategies.local.cuts import Auxiliary
from strategies.local.supervised import Modules, grouping
from strategies.local.supervised import build as supervised
from strategies.local.units import Shape


def build(
    depth: int = 2, min_depth: int = 1, decay: float = 0.5, modules: Modules | Literal["paper"] = "paper"
) -> LocalRule:
    """Return the rule.

    Args:
        depth: d, units of the deepest auxiliary network. min_depth: d_min.
        decay: tau, how far depths fall towards `min_depth`; 0 for one depth everywhere.
        modules: `paper`, K = n - d; `each`, one a unit; how many, cut by cost; or the units of each.
    """
    _check(depth, min_depth, decay)

    def auxiliaries(units: Sequence[nn.Module], made: Sequence[Shape], num_classes: int, num_modules: int) -> Auxiliary:
        deep = auxiliary_depths(num_modules, depth, min_depth, decay)

        def make(index: int, end: int) -> nn.Module:
            chosen = selected(len(units) - 1, end, deep[index])
            return network(units, made, end, chosen, num_classes, norm=deep[index] <= 1)

        return Auxiliary(make, lambda index: deep[index])

    def paper(num_units: int) -> range:
        return range(len(auxiliary_plan(num_units, depth, min_depth, decay)))

    return supervised("auglocal", auxiliaries, cross_entropy, paper if modules == "paper" else grouping(modules))


def auxiliary_plan(
    num_units: int, depth: int, min_depth: int = 1, decay: float = 0.5, *, ends: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Return, for each module but the last, the later units whose architecture its auxiliary network has.

    Args:
        num_units: n, without the head. depth: d. min_depth: d_min. decay: tau.
        ends: the last unit of each module but the last; None for the paper's, one unit each up to n - d - 2.

    Raises:
        ValueError: for what cannot be, with what can.
    """
    _check(depth, min_depth, decay)
    if ends is None:
        if depth >= num_units:
            raise ValueError(f"depth must be below the {num_units} units without the head, got {depth}")
        ends = range(num_units - depth - 1)
    if any(not 0 <= end < num_units - 1 for end in ends):
        raise ValueError(f"modules but the last must end at units 0 to {num_units - 2}, got {list(ends)}")
    depths = auxiliary_depths(len(ends) + 1, depth, min_depth, decay)
    return [selected(num_units, end, deep) for end, deep in zip(ends, depths, strict=True)]


def auxiliary_depths(num_modules: int, depth: int, min_depth: int = 1, decay: float = 0.5) -> list[int]:
    """Return the depth of each auxiliary network, of all `num_modules` but the last."""
    shares = [decay * index / max(num_modules - 2, 1) for index in range(num_modules - 1)]
    return [max(1, round(depth * (1 - share) + share * min_depth)) for share in shares]


def selected(num_units: int, end: int, depth: int) -> tuple[int, ...]:
    """Return `depth` units, evenly spread over those after unit `end`; the last is always the last."""
    left = num_units - 1 - end
    if depth >= left:
        return tuple(range(end + 1, num_units))
    return tuple(round(end + left / depth * step) for step in range(1, depth + 1))


def _check(depth: int, min_depth: int, decay: float) -> None:
    if not 1 <= min_depth <= depth:
        raise ValueError(f"depths must be 1 <= min_depth <= depth, got min_depth {min_depth} and depth {depth}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be from 0 to 1, got {decay}")
