"""Every behaviour, sampler and pacing that can be written can be built, and what cannot be is refused."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.config import behaviours, schema
from orchestrator.config.behaviours import Behaviour, Pacing, Sampler
from strategies.federated.behaviour import behaviour, trace_paths
from strategies.federated.behaviour.traces import trace
from strategies.federated.pacing import Synchronous, pacing
from strategies.federated.sampling import SAMPLERS, sampler

PARTS = {
    "speed": [
        {"kind": "constant"}, {"kind": "lognormal", "sigma": 0.3},
        {"kind": "classes", "classes": [{"speed": 5}, {"share": 2, "speed": 1}]}, {"kind": "trace", "path": "t"},
    ],
    "availability": [
        {"kind": "always"}, {"kind": "diurnal"}, {"kind": "sessions", "on_s": 60, "off_s": 600},
        {"kind": "trace", "path": "t", "period_s": 100},
    ],
    "dropout": [0.0, 0.5],
    "pause": [
        {"kind": "constant", "seconds": 1}, {"kind": "exponential", "mean_s": 2},
        {"kind": "lognormal", "median_s": 2, "classes": [{"factor": 1}, {"share": 3, "factor": 5}]},
    ],
    "steps": [
        {"kind": "settings"}, {"kind": "uniform", "high": 10}, {"kind": "lognormal", "median": 5},
        {"kind": "by-speed", "steps": 4},
    ],
    "stops": [{"fraction": 0.2, "mean_s": 50}],
    "link": [{"uplink_bytes_per_s": 1e5}],
}  # fmt: skip
NAMES = [
    {"name": "uniform"}, {"name": "weighted"}, {"name": "fixed", "clients": [1, 0]}, {"name": "round-robin"},
    {"name": "oort"}, {"name": "power-of-choice", "candidates": 5},
]  # fmt: skip
PACES = [
    {"kind": "auto"}, {"kind": "synchronous", "over_selection": 1.5, "deadline_s": 3}, {"kind": "buffered"},
    {"kind": "anarchic", "buffer": 3, "max_staleness": 5, "stale": "accept"},
]  # fmt: skip
TRACES = {"t": trace([0, 1], [0.0, 5.0], [50.0, 60.0], [1.0, 2.0])}


@pytest.mark.parametrize(("part", "value"), [(part, value) for part, values in PARTS.items() for value in values])
def test_a_behaviour_that_can_be_written_can_be_built(part, value) -> None:
    section = Behaviour.model_validate({part: value}).model_dump()
    made = behaviour(0, section, TRACES)
    assert made.speed(3) > 0 and made.pause_s(3, 1) >= 0 and made.waits_s(3, 7.0) >= 0
    assert trace_paths(section) == (("t",) if value in PARTS[part] and "'t'" in str(value) else ())


@pytest.mark.parametrize(
    ("section", "members"),
    [(behaviours.Speed, "speed"), (behaviours.Availability, "availability"), (behaviours.Pause, "pause"),
     (behaviours.Steps, "steps")],
)  # fmt: skip
def test_every_kind_is_built_above(section, members) -> None:
    kinds = {get_args(model.model_fields["kind"].annotation)[0] for model in get_args(get_args(section)[0])}
    assert kinds == {value["kind"] for value in PARTS[members]}


def test_the_section_of_earlier_files_means_what_it_meant() -> None:
    old = {"step_s": 0.05, "speed": {"kind": "lognormal", "sigma": 0.7}}
    before, now = schema.Behaviour.model_validate(old).model_dump(), Behaviour.model_validate(old).model_dump()
    assert {name: now[name] for name in before} == before
    assert behaviour(0, now) != behaviour(0, {}) and behaviour(0, Behaviour().model_dump()).speed(1) == 1.0


@pytest.mark.parametrize("value", NAMES, ids=str)
def test_a_sampler_that_can_be_written_can_be_built(value) -> None:
    section = TypeAdapter(Sampler).validate_python(value).model_dump()
    assert sampler(section).name == value["name"]
    assert {one["name"] for one in NAMES} == set(SAMPLERS)


@pytest.mark.parametrize("value", PACES, ids=str)
def test_a_pacing_that_can_be_written_can_be_built(value) -> None:
    section = TypeAdapter(Pacing).validate_python(value).model_dump()
    made = pacing(section, num_clients=20, cohort=10)
    assert isinstance(made, Synchronous) == (value["kind"] in ("auto", "synchronous"))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Behaviour, {"steps": {"kind": "uniform", "low": 5, "high": 2}}, "low is at most high, but 5 > 2"),
        (Behaviour, {"speed": {"kind": "classes", "classes": []}}, "at least 1 item"),
        (Behaviour, {"speed": {"kind": "classes", "classes": [{"share": 0.5, "speed": 1}]}}, "valid integer"),
        (Behaviour, {"dropout": 1.0}, "less than 1"),
        (Behaviour, {"availability": {"kind": "diurnal", "share": 1.5}}, "less than or equal to 1"),
        (Sampler, {"name": "fixed", "clients": [1, 2, 1]}, "once each, but 1 twice"),
        (Pacing, {"kind": "synchronous", "over_selection": 0.5}, "at least 1, got 0.5"),
        (Pacing, {"kind": "anarchic", "concurrency": 5}, "Extra inputs"),
    ],
)
def test_what_makes_no_sense_is_refused(kind, value, message) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(kind).validate_python(value)
