"""Where to cut units into a given number of modules, so that the slowest module, which sets the pace, is fastest.

A module costs what its units cost and what its auxiliary network costs, and that depends on where the module ends (and,
with a pyramid of depths, on the module). Costs of stages in `strategies.pipeline.balance` are sums over layers alone;
so here is its dynamic program once more, with the same answer for ties, over costs that depend on a module's end.

Costs are counted multiplications of one example's forward pass, in whole numbers. Backward passes take about twice as
much everywhere, and so change nothing. Left out: what is sent, which is one activation a cut, wherever it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from strategies.local.base import evaluating
from strategies.local.units import Shape, example, weight_of


class Auxiliary(NamedTuple):
    """The auxiliary networks of a rule.

    Args:
        make: `(module's index, index of its last unit) -> its auxiliary network`; draws from torch's generator.
        kind: `module's index -> what of it the network depends on`: two modules of a kind that end at the same unit
            would have the same architecture.
    """

    make: Callable[[int, int], nn.Module]
    kind: Callable[[int], Hashable]


def balanced_ends(
    units: Sequence[nn.Module],
    input_shape: Sequence[int],
    made: Sequence[Shape],
    auxiliary: Auxiliary,
    num_modules: int,
) -> list[int]:
    """Return the last unit of each module but the last, such that the costliest module costs least.

    Args:
        units: with the head, which stays with the last unit before it. made: the shape each returns.

    Raises:
        ValueError: when there are fewer units than modules.
    """
    num_units = len(units) - 1
    if not 1 <= num_modules <= num_units:
        raise ValueError(f"modules must be from 1 to {num_units}, one a unit without the head; got {num_modules}")
    costs = unit_multiplications(units, input_shape)
    costs[-2:] = [costs[-2] + costs[-1]]
    weight = weight_of(units)
    known: dict[Hashable, int] = {}

    def added(index: int, end: int) -> int:
        what = auxiliary.kind(index), end
        if what not in known:
            known[what] = multiplications(auxiliary.make(index, end), weight.new_zeros(1, *made[end]))
        return known[what]

    return cheapest_ends(costs, added, num_modules)


def cheapest_ends(costs: Sequence[int], added: Callable[[int, int], int], num_modules: int) -> list[int]:
    """Return the last unit of each module but the last that make the costliest module cheapest.

    Ties: the smallest sum of squared costs, then the lexicographically smallest numbers of units.

    Args:
        costs: of each unit. added: `(module's index, its last unit) -> cost of its auxiliary network`.

    Source: the partition of `strategies.pipeline.balance`; O(num_modules * n^2).
    """
    load = [0, *accumulate(costs)]
    num_units = len(costs)

    def search(limit: int | None) -> tuple[int, list[int]] | None:
        """Minimise the largest cost, or with a limit on it the sum of squares; return it and the last units."""
        rest: list[tuple[int, list[int]] | None] = [None] * num_units + [(0, [])]
        for index in reversed(range(num_modules)):
            best_of: list[tuple[int, list[int]] | None] = [None] * (num_units + 1)
            for start in range(index, num_units):
                for end in range(start, num_units):
                    later = rest[end + 1]
                    if later is None or (index == num_modules - 1) != (end == num_units - 1):
                        continue
                    own = load[end + 1] - load[start] + (added(index, end) if index < num_modules - 1 else 0)
                    if limit is not None and own > limit:
                        continue
                    value = max(own, later[0]) if limit is None else own**2 + later[0]
                    best = best_of[start]
                    if best is None or value < best[0]:
                        best_of[start] = (value, [end, *later[1]])
            rest = best_of
        return rest[0]

    largest = search(None)
    assert largest is not None, "there are as many units as modules"
    chosen = search(largest[0])
    assert chosen is not None, "the partition that gave the limit is under it"
    return chosen[1][:-1]


def unit_multiplications(units: Sequence[nn.Module], input_shape: Sequence[int]) -> list[int]:
    """Return each unit's multiplications for one example."""
    x, counts = example(units, input_shape), []
    for unit in units:
        counts.append(multiplications(unit, x))
        with evaluating(unit):
            x = unit(x)
    return counts


def multiplications(module: nn.Module, x: Tensor) -> int:
    """Return how many numbers a forward pass multiplies with weights.

    Convolutions and affine maps are counted to the number; another part's matrices count once for each place of what
    it returns. Left out: norms, and products of activations with each other, as in attention.
    """
    total = 0

    def add(part: nn.Module, given: tuple[Tensor, ...], returned: Tensor | tuple[Tensor, ...]) -> None:
        nonlocal total
        out = returned if isinstance(returned, Tensor) else returned[0]
        if isinstance(part, _ConvNd):
            moved = given[0] if part.transposed else out
            total += moved.numel() * part.weight[0].numel()
        else:
            whole = isinstance(part, nn.MultiheadAttention)  # uses its last map's weights without calling it
            matrices = [weight for weight in part.parameters(recurse=whole) if weight.dim() > 1]
            total += sum(weight.numel() for weight in matrices) * out.numel() // out.shape[-1]

    counted = [part for part in module.modules() if not isinstance(part, nn.Embedding | nn.EmbeddingBag)]
    hooks = [
        part.register_forward_hook(add)
        for part in counted
        if any(weight.dim() > 1 for weight in part.parameters(recurse=False))
    ]
    try:
        with evaluating(module):
            module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return total
