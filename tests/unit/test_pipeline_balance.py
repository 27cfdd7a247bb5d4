"""Cutting a chain into stages: known examples, ties, and what the errors say."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.pipeline import balance


def test_the_largest_stage_decides_not_the_number_of_layers() -> None:
    assert balance([1, 1, 1, 1, 9, 1, 1], 3) == [4, 1, 2]


def test_ties_go_to_the_smallest_variance() -> None:
    assert balance([9, 1, 1, 1, 1, 1, 1], 3) == [1, 3, 3]


def test_ties_of_the_same_variance_go_to_fewer_layers_first() -> None:
    assert balance([1, 1, 1, 1, 1], 3) == [1, 2, 2]


def test_sums_of_floats_are_not_rounded() -> None:
    # rounded, 1e16 + 1 is 1e16, and [1, 3] would be as good
    assert balance([1e16, 1.0, 1.0, 1e16], 2) == [2, 2]


def test_numpy_numbers_are_numbers() -> None:
    assert balance(list(np.array([3, 1, 2], np.float32)), 2) == balance(list(np.array([3, 1, 2])), 2) == [1, 2]


def test_a_limit_moves_the_cut_away_from_what_costs_least() -> None:
    assert balance([1, 1, 1, 1], 2) == [2, 2]
    assert balance([1, 1, 1, 1], 2, memory=[5, 5, 1, 1], limit=7) == [1, 3]
    assert balance([1, 1, 1, 1], 2, memory=[2, 2, 2, 2], limit=[2, 9]) == [1, 3]


def test_cuts_are_only_where_they_are_allowed() -> None:
    assert balance([1, 1, 1, 1, 1, 1], 2, cuts={0, 4}) == [1, 5]
    assert balance([1, 1, 1, 1, 1, 1], 3, cuts={0, 4}) == [1, 4, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_stages": 4}, "3 layers cannot make 4 stages of at least 1; use fewer stages"),
        ({"num_stages": 0}, "num_stages must be at least 1, got 0"),
        ({"num_stages": 3, "cuts": {1}}, r"3 stages need 2 cuts, but only 1 are possible, after layers \[1\]"),
        ({"num_stages": 2, "cuts": {2}}, r"cuts must be from 0 to 1 for 3 layers, got \[2\]"),
        ({"num_stages": 2, "memory": [1, 1, 1]}, "memory and limit go together"),
        ({"num_stages": 2, "limit": 5}, "memory and limit go together"),
        ({"num_stages": 2, "memory": [1, 1], "limit": 5}, "memory needs one number for each of 3 layers, got 2"),
        (
            {"num_stages": 2, "memory": [1, -1, 1], "limit": 5},
            "memory must be finite and at least 0, got -1 for layer 1",
        ),
        ({"num_stages": 2, "memory": [1, 1, 1], "limit": [5]}, "limit needs one number, or one for each of 2 stages"),
        ({"num_stages": 2, "memory": [1, 9, 1], "limit": 8}, "layer 1 needs 9 bytes, but a stage has at most 8"),
        (
            {"num_stages": 2, "memory": [5, 5, 1], "limit": 8, "cuts": {1}},
            "layers 0 to 1, never cut, need 10 bytes, but a stage has at most 8",
        ),
        (
            {"num_stages": 2, "memory": [5, 5, 5], "limit": 8},
            r"3 layers of 15 bytes do not fit 2 stages of \[8, 8\] bytes, together 16; "
            "cut as evenly as they can be, the largest stage needs 10; raise the limit or use more stages",
        ),
    ],
)
def test_what_is_impossible_is_refused_with_its_numbers(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        balance([1.0, 2.0, 3.0], **arguments)


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_costs_are_finite_and_not_negative(cost: float) -> None:
    with pytest.raises(ValueError, match=f"costs must be finite and at least 0, got {cost} for layer 1"):
        balance([1.0, cost], 1)
