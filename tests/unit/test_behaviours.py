"""The distributions that models of client behaviour promise, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from strategies.federated.behaviour import behaviour, communication_s, lognormal_speed
from strategies.federated.behaviour.base import classes, draws, exponential, normal
from strategies.federated.behaviour.traces import TraceError, trace, traced_waits

MANY = 4000


def test_draws_are_uniform_and_neighbours_are_independent() -> None:
    uniform = draws(0, "some purpose")
    by_client = np.array([uniform(client, 5) for client in range(MANY)])
    by_order = np.array([uniform(5, order) for order in range(MANY)])
    for drawn in (by_client, by_order):
        assert stats.kstest(drawn, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / np.sqrt(MANY)
    assert abs(np.corrcoef(by_client, by_order)[0, 1]) < 5 / np.sqrt(MANY)
    other = draws(0, "another purpose")
    assert abs(np.corrcoef(by_client, [other(client, 5) for client in range(MANY)])[0, 1]) < 5 / np.sqrt(MANY)
    assert stats.kstest([normal(one) for one in by_client], "norm").pvalue > 1e-3
    assert stats.kstest([exponential(one) for one in by_client], "expon").pvalue > 1e-3


def test_the_numbers_of_a_stream_are_part_of_what_makes_runs_equal() -> None:
    assert draws(7, "behaviour/steps")(3, 11) == 0.5810568279657419


def test_speeds_are_those_of_the_function_that_runs_have_used_so_far() -> None:
    made = behaviour(5, {"speed": {"kind": "lognormal", "sigma": 0.7}})
    assert [made.speed(client) for client in range(20)] == [
        lognormal_speed(5, client, sigma=0.7) for client in range(20)
    ]


@pytest.mark.parametrize("first", [0, 17, 999_000])
def test_classes_hold_their_shares_in_any_range_of_clients(first) -> None:
    for seed in range(5):
        of = classes(seed, [1, 3])
        ten = [of(client) for client in range(first, first + 10)]
        assert 1 <= ten.count(0) <= 4
        many = np.array([of(client) for client in range(first // 4 * 4, first // 4 * 4 + 1000)])
        assert (many == 0).sum() == 250
        assert stats.chisquare([(many[place::4] == 0).sum() for place in range(4)]).pvalue > 1e-3


def test_shares_are_whole_numbers() -> None:
    halves = classes(0, [50, 50])
    assert [halves(client) for client in range(100)] == [classes(0, [1, 1])(client) for client in range(100)]
    for shares in ([], [0, 1], [0.5, 0.5]):
        with pytest.raises(ValueError, match="whole shares above 0"):
            classes(0, shares)


def test_the_fast_half_is_also_the_half_that_rests_less() -> None:
    made = behaviour(
        1,
        {
            "speed": {"kind": "classes", "classes": [{"share": 1, "speed": 5.0}, {"share": 1, "speed": 1.0}]},
            "pause": {
                "kind": "constant", "seconds": 1.0,
                "classes": [{"share": 1, "factor": 1.0}, {"share": 1, "factor": 5.0}],
            },
        },
    )  # fmt: skip
    assert {(made.speed(client), made.pause_s(client, 0)) for client in range(50)} == {(5.0, 1.0), (1.0, 5.0)}


def test_steps_dropouts_and_pauses_follow_their_distributions() -> None:
    made = behaviour(
        2,
        {
            "steps": {"kind": "uniform", "low": 3, "high": 7},
            "dropout": 0.2,
            "pause": {"kind": "exponential", "mean_s": 4.0},
        },
    )
    steps = np.bincount([made.num_steps(client, 0) for client in range(MANY)], minlength=8)
    assert steps[:3].sum() == 0 and stats.chisquare(steps[3:]).pvalue > 1e-3
    dropped = sum(made.drops(1, order) for order in range(MANY))
    assert stats.binomtest(dropped, MANY, 0.2).pvalue > 1e-3
    assert stats.kstest([made.pause_s(c, 9) for c in range(MANY)], "expon", args=(0, 4.0)).pvalue > 1e-3


def test_lognormal_numbers_have_their_median() -> None:
    made = behaviour(
        2,
        {
            "steps": {"kind": "lognormal", "median": 40.0, "sigma": 0.5},
            "pause": {"kind": "lognormal", "median_s": 3.0, "sigma": 0.5},
        },
    )
    assert 38 <= np.median([made.num_steps(client, 0) for client in range(MANY)]) <= 42
    logs = [math.log(made.pause_s(client, 0) / 3.0) / 0.5 for client in range(MANY)]
    assert stats.kstest(logs, "norm").pvalue > 1e-3


def test_fast_clients_do_more_steps_and_take_as_long() -> None:
    made = behaviour(
        0,
        {
            "speed": {"kind": "classes", "classes": [{"share": 1, "speed": 4.0}, {"share": 1, "speed": 0.5}]},
            "steps": {"kind": "by-speed", "steps": 10},
        },
    )
    assert {made.num_steps(client, 0) / made.speed(client) for client in range(10)} == {10.0}


def test_half_a_day_is_half_the_clients_at_any_time_and_each_for_one_stretch() -> None:
    made = behaviour(3, {"availability": {"kind": "diurnal", "period_s": 24.0, "share": 0.5, "spread": 1.0}})
    for now_s in (0.0, 7.0, 1000.0):
        there = sum(made.waits_s(client, now_s) == 0 for client in range(MANY))
        assert stats.binomtest(there, MANY, 0.5).pvalue > 1e-3
    day = [made.waits_s(8, now_s) == 0 for now_s in np.arange(240, 264, 0.1).tolist()]
    assert 118 <= sum(day) <= 122
    assert sum(one != other for one, other in zip(day, day[1:] + day[:1], strict=True)) == 2


def test_clients_of_one_time_zone_come_and_go_together() -> None:
    made = behaviour(3, {"availability": {"kind": "diurnal", "period_s": 24.0, "share": 0.25, "spread": 0.0}})
    assert {made.waits_s(client, 5.0) for client in range(20)} == {0.0}
    assert {made.waits_s(client, 30.0) for client in range(20)} == {18.0}


def test_sessions_are_as_long_as_said_and_leave_a_client_there_that_part_of_the_time() -> None:
    made = behaviour(4, {"availability": {"kind": "sessions", "on_s": 3.0, "off_s": 9.0}})
    for now_s in (0.0, 95.9, 96.0, 5000.0):
        there = sum(made.waits_s(client, now_s) == 0 for client in range(MANY))
        assert stats.binomtest(there, MANY, 0.25).pvalue > 1e-3
    waits = [wait for client in range(MANY) if (wait := made.waits_s(client, 40.0)) > 0]
    assert stats.kstest(waits, "expon", args=(0, 9.0)).pvalue > 1e-3  # memoryless: what is left is as long as all


def test_that_part_of_the_clients_stops_for_ever_at_exponential_times() -> None:
    made = behaviour(5, {"stops": {"fraction": 0.3, "mean_s": 100.0}})
    for now_s in (0.0, 70.0, 1e9):
        gone = sum(math.isinf(made.waits_s(client, now_s)) for client in range(MANY))
        assert stats.binomtest(gone, MANY, 0.3 * -math.expm1(-now_s / 100)).pvalue > 1e-3


def test_a_trace_says_who_is_there_and_joins_intervals_that_touch() -> None:
    table = trace([2, 1, 1, 1], [5.0, 0.0, 30.0, 10.0], [6.0, 10.0, 40.0, 20.0], [3.0, 1.0, 1.0, 1.0])
    assert table.devices.tolist() == [1, 2]
    assert (table.start_s.tolist(), table.end_s.tolist()) == ([0.0, 30.0, 5.0], [20.0, 40.0, 6.0])
    waits = traced_waits(table)
    assert [waits(0, now_s) for now_s in (0.0, 19.0, 20.0, 35.0, 40.0)] == [0.0, 0.0, 10.0, 0.0, math.inf]
    assert (waits(1, 0.0), waits(3, 0.0), waits(2, 25.0)) == (5.0, 5.0, 5.0)
    again = traced_waits(table, period_s=50.0)
    assert [again(0, now_s) for now_s in (40.0, 50.0, 1070.0)] == [10.0, 0.0, 10.0]
    assert again(1, 6.0) == 49.0
    made = behaviour(0, {"speed": {"kind": "trace", "path": "a"}}, {"a": table})
    assert [made.speed(client) for client in range(4)] == [1.0, 3.0, 1.0, 3.0]


def test_an_interval_inside_another_adds_nothing() -> None:
    table = trace([1, 1, 1], [0.0, 2.0, 5.0], [10.0, 3.0, 6.0])
    assert (table.start_s.tolist(), table.end_s.tolist()) == ([0.0], [10.0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([], [], []), "row 0: there is none"),
        (([1, 1], [0.0, 5.0], [1.0, 5.0]), "row 1: end_s is 5.0, expected above 5.0"),
        (([1, 1], [0.0, -5.0], [1.0, 5.0]), "row 1: start_s is -5.0"),
        (([1], [0.0], [math.inf]), "row 0: end_s is inf"),
        (([1], [0.0], [1.0], [0.0]), "row 0: speed is 0.0"),
        (([1, 2, 1], [0.0, 0.0, 4.0], [1.0, 1.0, 5.0], [1.0, 2.0, 2.0]), "row 2: speed is 2.0, but 1.0"),
    ],
)
def test_a_row_that_is_no_interval_is_named(columns, message) -> None:
    with pytest.raises(TraceError, match=message):
        trace(*columns)


def test_a_trace_without_speeds_or_longer_than_its_period_is_refused() -> None:
    table = trace([1], [0.0], [10.0])
    with pytest.raises(ValueError, match="no speeds"):
        behaviour(0, {"speed": {"kind": "trace", "path": "a"}}, {"a": table})
    with pytest.raises(ValueError, match=r"until 10\.0 s, expected at most its period, 9\.0 s"):
        behaviour(0, {"availability": {"kind": "trace", "path": "a", "period_s": 9.0}}, {"a": table})


def test_transfers_take_their_bytes_over_their_bandwidth() -> None:
    assert communication_s(100, 300, downlink_bytes_per_s=50.0, uplink_bytes_per_s=100.0) == 5.0
    assert communication_s(100, 300, downlink_bytes_per_s=None, uplink_bytes_per_s=None) == 0.0
