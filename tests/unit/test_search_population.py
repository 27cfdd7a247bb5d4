"""Population-based training: who copies whom."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.schema import Search
from orchestrator.population import Member, intervals, next_generation

SPACE = Search.model_validate({"space": {"lr": {"loguniform": [0.001, 1.0]}}}).space
MEMBERS = [Member(number, {"lr": 0.1 * (number + 1)}) for number in range(4)]


def after(values: list[float | None], members: list[Member] = MEMBERS, **changes: Any) -> list[Member]:
    arguments = {"step": 5, "mode": "max", "quantile": 0.25, "space": SPACE, "seed": 3, "next_number": 4, **changes}
    return next_generation(members, values, **arguments)


def test_the_worst_copies_the_best_and_the_others_go_on() -> None:
    population = after([0.1, 0.9, 0.5, 0.4])
    assert population[1:] == MEMBERS[1:]
    assert (population[0].number, population[0].donor, population[0].step) == (4, 1, 5)
    assert population[0].params != MEMBERS[1].params


def test_with_mode_min_the_largest_value_is_the_worst() -> None:
    population = after([0.1, 0.9, 0.5, 0.4], mode="min")
    assert [member.donor for member in population] == [None, 0, None, None]


def test_half_of_the_population_may_be_replaced_and_numbers_count_on() -> None:
    population = after([0.1, 0.9, 0.5, 0.4], quantile=0.5)
    assert [member.number for member in population] == [4, 1, 2, 5]
    assert {population[0].donor, population[3].donor} <= {1, 2}


def test_the_same_seed_decides_the_same_and_the_step_matters() -> None:
    values: list[float | None] = [0.1, 0.9, 0.5, 0.4]
    assert after(values) == after(values)
    varied = {after(values, step=step)[0].params["lr"] for step in range(5, 50, 5)}
    assert len(varied) > 2
    assert len({after(values, seed=seed)[0].params["lr"] for seed in range(10)}) > 2


def test_members_that_failed_are_replaced_beyond_the_quantile() -> None:
    population = after([None, 0.9, None, None])
    assert [member.donor for member in population] == [1, None, 1, 1]


def test_the_last_one_left_is_not_replaced_by_itself() -> None:
    assert after([None, None, 0.2, None])[2] is MEMBERS[2]


def test_equals_do_not_copy_each_other() -> None:
    assert after([0.5, 0.5, 0.5, 0.5]) == MEMBERS


def test_a_population_of_which_all_failed_has_no_next() -> None:
    with pytest.raises(ValueError, match="no member"):
        after([None, None, None, None])


@pytest.mark.parametrize(
    ("rounds", "interval", "expected"), [(6, 2, [2, 4, 6]), (7, 3, [3, 6, 7]), (4, 5, [4]), (3, 1, [1, 2, 3])]
)
def test_members_meet_after_each_interval_and_at_the_end(rounds: int, interval: int, expected: list[int]) -> None:
    assert intervals(rounds, interval) == expected


def test_copies_of_one_member_differ_from_it_and_from_each_other() -> None:
    members = [Member(number, {"lr": 0.1}) for number in range(6)]
    population = after([0.9, 0.1, 0.2, 0.3, 0.4, None], members, quantile=0.5, next_number=6)
    copies = [member.params["lr"] for member in population if member.donor is not None]
    assert len(copies) == len(set(copies)) >= 3
    assert 0.1 not in copies
