"""What every model of client behaviour promises, over all that an experiment file can name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from strategies.federated.behaviour import behaviour
from strategies.federated.behaviour.traces import trace

TRACE = trace([4, 4, 9, 7], [0.0, 50.0, 10.0, 90.0], [20.0, 60.0, 40.0, 95.0], [1.0, 1.0, 2.0, 0.5])
SECTIONS = {
    "ideal": {},
    "lognormal speed": {"speed": {"kind": "lognormal", "sigma": 0.5}},
    "speed classes": {"speed": {"kind": "classes", "classes": [{"share": 1, "speed": 5}, {"share": 3, "speed": 1}]}},
    "traced speed": {"speed": {"kind": "trace", "path": "a"}},
    "diurnal": {"availability": {"kind": "diurnal", "period_s": 24.0, "share": 0.3, "spread": 0.7}},
    "always by day": {"availability": {"kind": "diurnal", "period_s": 24.0, "share": 1.0, "spread": 1.0}},
    "sessions": {"availability": {"kind": "sessions", "on_s": 3.0, "off_s": 11.0}},
    "trace": {"availability": {"kind": "trace", "path": "a"}},
    "repeated trace": {"availability": {"kind": "trace", "path": "a", "period_s": 97.3}},
    "dropout": {"dropout": 0.3},
    "stops": {"stops": {"fraction": 0.5, "mean_s": 50.0}},
    "stops by day": {
        "stops": {"fraction": 1.0, "mean_s": 90.0},
        "availability": {"kind": "diurnal", "period_s": 24.0, "share": 0.5, "spread": 1.0},
    },
    "constant pause": {"pause": {"kind": "constant", "seconds": 2.5}},
    "exponential pause": {"pause": {"kind": "exponential", "mean_s": 4.0}},
    "lognormal pause": {"pause": {"kind": "lognormal", "median_s": 1.0, "sigma": 2.0}},
    "pause classes": {
        "pause": {"kind": "constant", "seconds": 1.0, "classes": [{"share": 1, "factor": 1}, {"share": 1, "factor": 5}]}
    },
    "uniform steps": {"steps": {"kind": "uniform", "low": 2, "high": 9}},
    "lognormal steps": {"steps": {"kind": "lognormal", "median": 3.0, "sigma": 1.5}},
    "steps by speed": {
        "speed": {"kind": "lognormal", "sigma": 1.0},
        "steps": {"kind": "by-speed", "steps": 10.0},
    },
}  # fmt: skip
TIMES = [0.0, 0.5, 19.999, 20.0, 97.3, 1234.5678, 1e6]


def build(name, seed=3):
    return behaviour(seed, SECTIONS[name], {"a": TRACE})


def answers(made, pairs):
    return {
        (client, order): (
            made.speed(client),
            made.num_steps(client, order),
            made.drops(client, order),
            made.pause_s(client, order),
            [made.waits_s(client, now_s) for now_s in TIMES],
        )
        for client, order in pairs
    }


@pytest.mark.parametrize("name", SECTIONS)
def test_answers_depend_on_the_seed_and_the_question_alone(name) -> None:
    pairs = [(client, order) for client in (0, 1, 17, 999_999) for order in (0, 1, 12_345_678)]
    assert answers(build(name), pairs) == answers(build(name), reversed(pairs))


@pytest.mark.parametrize("name", SECTIONS)
def test_answers_are_what_a_clock_can_use(name) -> None:
    for speed, num_steps, _, pause_s, waits in answers(
        build(name), [(c, o) for c in range(30) for o in (0, 7)]
    ).values():
        assert 0 < speed < math.inf
        assert num_steps is None or (isinstance(num_steps, int) and num_steps >= 1)
        assert 0 <= pause_s < math.inf
        assert all(wait >= 0 for wait in waits)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_client_is_available_after_it_has_waited_and_never_again_after_for_ever(name) -> None:
    made = build(name)
    for client in range(30):
        gone = False
        for now_s in np.random.default_rng(client).uniform(0, 500, 40).cumsum().tolist():
            wait = made.waits_s(client, now_s)
            gone = gone or math.isinf(wait)
            assert made.waits_s(client, now_s + wait) == 0 if not gone else math.isinf(wait)


@pytest.mark.parametrize(
    "name", ["lognormal speed", "diurnal", "sessions", "dropout", "stops", "exponential pause", "uniform steps"]
)
def test_another_seed_gives_other_clients(name) -> None:
    pairs = [(client, 0) for client in range(40)]
    assert answers(build(name), pairs) != answers(build(name, seed=4), pairs)
