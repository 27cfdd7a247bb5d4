"""Cohorts and speeds depend on seed and round or client alone."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.federated.behaviour import duration_s, lognormal_speed
from strategies.federated.sampling import uniform
from strategies.seeds import generator


def test_a_cohort_is_distinct_sorted_and_repeatable() -> None:
    drawn = uniform(1000, 50, generator(3, "cohort", 1))
    assert drawn == uniform(1000, 50, generator(3, "cohort", 1))
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == 50


def test_the_whole_population_is_a_cohort() -> None:
    assert uniform(5, 5, generator(0, "cohort", 1)) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("cohort", [0, 6, -1])
def test_a_cohort_that_cannot_be_drawn_is_refused(cohort: int) -> None:
    with pytest.raises(ValueError, match="from 5 clients"):
        uniform(5, cohort, generator(0, "cohort", 1))


def test_every_client_is_drawn_about_equally_often() -> None:
    counts = np.zeros(20)
    for round_ in range(2000):
        counts[list(uniform(20, 5, generator(1, "cohort", round_)))] += 1
    assert abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_a_client_keeps_its_speed_and_the_median_speed_is_one() -> None:
    speeds = np.array([lognormal_speed(0, client, sigma=0.5) for client in range(2001)])
    assert speeds[7] == lognormal_speed(0, 7, sigma=0.5)
    assert 0.95 < np.median(speeds) < 1.05
    assert speeds.min() > 0


def test_a_client_twice_as_fast_takes_half_the_time() -> None:
    assert duration_s(10, step_s=0.5, speed=2.0) == 2.5
