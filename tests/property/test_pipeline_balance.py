"""`balance` against trying every partition, with limits and forbidden cuts, including what is impossible."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.pipeline import balance

number = st.one_of(
    st.integers(0, 9), st.floats(0, 10), st.sampled_from([0.1, 0.2, 0.3, 1e-300, 1e300]), st.fractions(0, 5)
)


def by_trying_all(costs, num_stages, memory=None, limit=None, cuts=None):
    """Return the best partition: largest stage, then sum of squares, then the list itself; None when none fits."""
    found = []
    allowed = range(len(costs) - 1) if cuts is None else sorted(cuts)
    for chosen in combinations(allowed, num_stages - 1):
        ends = [0, *(cut + 1 for cut in chosen), len(costs)]
        stages = [sum(map(Fraction, costs[start:end])) for start, end in pairwise(ends)]
        if memory is not None:
            room = limit if isinstance(limit, list) else [limit] * num_stages
            held = [sum(map(Fraction, memory[start:end])) for start, end in pairwise(ends)]
            if any(has > may for has, may in zip(held, room, strict=True)):
                continue
        found.append((max(stages), sum(stage**2 for stage in stages), [end - start for start, end in pairwise(ends)]))
    return min(found)[2] if found else None


@settings(deadline=None)
@given(st.lists(number, min_size=1, max_size=9), st.data())
def test_the_largest_stage_is_as_small_as_can_be(costs, data) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))
    assert balance(costs, num_stages) == by_trying_all(costs, num_stages)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(number, st.integers(0, 9)), min_size=1, max_size=9), st.data())
def test_limits_and_cuts_are_kept_or_refused(layers, data) -> None:
    costs, memory = [cost for cost, _ in layers], [size for _, size in layers]
    num_stages = data.draw(st.integers(1, len(layers)))
    cuts = data.draw(st.none() | st.sets(st.integers(0, len(layers) - 2)) if len(layers) > 1 else st.none())
    bytes_ = st.integers(0, 30)
    limit = data.draw(bytes_ | st.lists(bytes_, min_size=num_stages, max_size=num_stages))
    wanted = by_trying_all(costs, num_stages, memory, limit, cuts)
    if wanted is None:
        with pytest.raises(ValueError, match=r"bytes|cuts"):
            balance(costs, num_stages, memory=memory, limit=limit, cuts=cuts)
    else:
        assert balance(costs, num_stages, memory=memory, limit=limit, cuts=cuts) == wanted


@settings(deadline=None)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=40), st.data(), st.integers(-40, 40))
def test_the_unit_of_costs_does_not_matter(costs, data, power) -> None:
    num_stages = data.draw(st.integers(1, len(costs)))
    assert balance([cost * 2.0**power for cost in costs], num_stages) == balance(costs, num_stages)


@settings(deadline=None)
@given(st.integers(1, 60), st.data())
def test_equal_layers_make_stages_that_differ_by_one_with_the_larger_ones_last(num_layers, data) -> None:
    num_stages = data.draw(st.integers(1, num_layers))
    made = balance([1.0] * num_layers, num_stages)
    size, larger = divmod(num_layers, num_stages)
    assert made == [size] * (num_stages - larger) + [size + 1] * larger
