"""What a search draws, and how it varies what it drew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.config.schema import Search
from orchestrator.search_space import draw, explore, sample_of

SPACE = {
    "a": {"loguniform": [0.001, 1.0]},
    "b": {"uniform": [-1.0, 1.0]},
    "c": {"randint": [2, 5]},
    "d": {"choice": ["x", "y", "z"]},
}


def search(space: dict[str, Any], trials: int = 6, algorithm: str = "random") -> Search:
    return Search.model_validate({"space": space, "trials": trials, "algorithm": {"name": algorithm}})


def test_the_same_seed_draws_the_same_trials_and_another_seed_others() -> None:
    assert draw(search(SPACE), 7) == draw(search(SPACE), 7)
    assert draw(search(SPACE), 7) != draw(search(SPACE), 8)


def test_more_trials_extend_the_list() -> None:
    assert draw(search(SPACE, 9), 7)[:4] == draw(search(SPACE, 4), 7)


def test_another_field_leaves_the_draws_of_the_others_as_they_were() -> None:
    few = {name: SPACE[name] for name in ("a", "b")}
    assert [{name: trial[name] for name in few} for trial in draw(search(SPACE), 7)] == draw(search(few), 7)


def test_draws_lie_in_their_domains_and_spread_over_them() -> None:
    trials = draw(search(SPACE, 300), 0)
    assert all(0.001 <= trial["a"] <= 1 and -1 <= trial["b"] <= 1 and trial["c"] in (2, 3, 4) for trial in trials)
    assert {trial["c"] for trial in trials} == {2, 3, 4}
    assert {trial["d"] for trial in trials} == {"x", "y", "z"}
    logs = [math.log10(trial["a"]) for trial in trials]
    assert 80 < sum(-2 <= log < -1 for log in logs) < 120, "a third of the draws in each decade"
    assert all(type(trial["c"]) is int and type(trial["a"]) is float for trial in trials)


def test_every_combination_of_grids_is_tried_once_for_each_sample() -> None:
    trials = draw(search({"g": {"grid": [1, 2]}, "h": {"grid": ["u", "v", "w"]}, "a": SPACE["a"]}, 2), 3)
    assert len(trials) == 12
    assert len({trial["a"] for trial in trials}) == 2
    assert [(trial["g"], trial["h"]) for trial in trials[:6]] == [(g, h) for g in (1, 2) for h in "uvw"]


def test_a_space_of_grids_alone_is_tried_once_since_a_repeated_trial_gives_the_same_bits() -> None:
    assert draw(search({"g": {"grid": [1, 2, 3]}}, 8), 0) == [{"g": 1}, {"g": 2}, {"g": 3}]


def test_no_trial_is_drawn_twice_and_a_small_space_gives_fewer_trials() -> None:
    trials = draw(search({"d": SPACE["d"]}, 8), 1)
    assert sorted(trial["d"] for trial in trials) == ["x", "y", "z"]


def test_a_population_has_the_size_asked_for_though_members_be_equal() -> None:
    assert len(draw(search({"d": SPACE["d"]}, 8, "pbt"), 1)) == 8


def test_fields_come_in_the_order_of_the_file() -> None:
    space = {"z": SPACE["a"], "g": {"grid": [1]}, "a": SPACE["b"]}
    assert list(draw(search(space, 1), 0)[0]) == ["z", "g", "a"]


@pytest.mark.parametrize("field", list(SPACE))
def test_exploring_never_leaves_the_domain(field: str) -> None:
    space = search(SPACE).space
    rng = np.random.default_rng(0)
    params = {name: sample_of(domain, rng) for name, domain in space.items()}
    seen = set()
    for _ in range(200):
        params = explore(params, space, rng)
        seen.add(params[field])
    low, high = {"a": (0.001, 1.0), "b": (-1.0, 1.0), "c": (2, 4), "d": ("x", "z")}[field]
    assert all(low <= value <= high for value in seen)
    assert len(seen) >= 3


def test_exploring_nudges_by_a_fifth_or_draws_anew() -> None:
    space = search({"a": {"uniform": [0.0, 100.0]}}).space
    rng = np.random.default_rng(0)
    moved = [explore({"a": 10.0}, space, rng)["a"] for _ in range(400)]
    assert 100 < moved.count(8.0) < 200 and 100 < moved.count(12.0) < 200
    assert 60 < sum(value not in (8.0, 12.0) for value in moved) < 140, "a quarter is drawn anew"


def test_exploring_a_whole_number_moves_it_by_at_least_one() -> None:
    space = search({"c": {"randint": [1, 100]}}).space
    rng = np.random.default_rng(0)
    moved = {explore({"c": 2}, space, rng)["c"] for _ in range(100)}
    assert {1, 3} <= moved and 2 not in {value for value in moved if value < 3}
