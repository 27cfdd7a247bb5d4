"""Clients whose inputs differ in shape train bodies of their own below one top, as in FLEEG (arXiv:2308.11636)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.preparing import prepare
from tests.contract.federated_plays import Shuffled, config, play, same
from trainers.data import own
from trainers.data.base import DataError
from trainers.data.validate import validate

CLIENTS = {"held_out": 0.25, "keep_best": True}


def sensors(algorithm: str = "fedavg", wrong: str = "", **changes: Any) -> dict[str, Any]:
    settings = config(
        {"name": algorithm, "rounds": 6},
        data={"target": "tests.contract.toy_sensors:data", "partition": {"kind": "column"}},
        model={"target": "tests.contract.toy_sensors:sensor", "kwargs": {"wrong": wrong}},
        evaluate={"every": 2, "clients": CLIENTS},
        **{"aggregate_keys": r"^top\.", "fold_block": 1, **changes},
    )
    settings["strategy"]["client"]["steps"] = 12
    return settings


def test_bodies_of_two_shapes_learn_below_one_top() -> None:
    settings = sensors()
    run = play(settings)
    same(run, play(settings, Shuffled, cuts=(2, 4)))
    assert list(run.model) == ["top.weight", "top.bias"]
    assert [tuple(run.clients[client]["personal/body.weight"].shape) for client in range(4)] == [(5, 6), (5, 12)] * 2
    first, last = run.reports[0].values, run.last.values
    assert last["clients/accuracy"] > first["clients/accuracy"] + 0.2
    assert "test/accuracy" not in last


@pytest.mark.parametrize("algorithm", ["scaffold", "afa-cs", "fedadam"])
def test_rules_that_remember_take_clients_of_any_shape(algorithm: str) -> None:
    settings = sensors(algorithm, compression=[{"name": "top-k", "keep": 0.3}], error_feedback=True)
    run = play(settings)
    same(run, play(settings, Shuffled, cuts=(3,)))
    kept = {name.split("/")[0] for name in run.clients[1]} - {"personal", "best", ""}
    assert "residual" in kept
    assert not [name for name in run.clients[1] if name.startswith(("residual", "memory")) and "body" in name]


def test_bodies_of_clients_that_take_no_part_stay_as_they_were() -> None:
    settings = sensors(sampler={"name": "fixed", "clients": [0, 1]})
    settings["strategy"]["algorithm"]["cohort"] = 2
    run = play(settings)
    assert set(run.clients) == {0, 1, 2, 3}, "all were measured, so each has a best model"
    assert not [name for client in (2, 3) for name in run.clients[client] if name.startswith("personal/")]
    moved = run.clients[0]["personal/body.weight"]
    assert not torch.equal(moved, run.clients[2]["best/body.weight"])


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"wrong": "top"}, "strategy.aggregate_keys",
         r"top.weight is to be aggregated, but has shape \(3, 6\) for inputs \(2, 3\) and \(3, 12\) for inputs"),
        ({"aggregate_keys": None}, "strategy.aggregate_keys", r"body.weight is to be aggregated, but has shape"),
        ({"wrong": "fails"}, "model", r"for clients whose inputs are \(12,\): .* cannot take a batch of shape"),
        ({"wrong": "refuses"}, "model", r"for clients whose inputs are \(12,\): .*only grids are welcome"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_networks_that_do_not_go_together_are_refused_before_anything_starts(
    tmp_path: Path, changes: dict[str, Any], path: str, message: str
) -> None:
    settings = sensors(**changes) | {"storage": {"root": str(tmp_path / "runs")}}
    with pytest.raises(ConfigError, match=message) as raised:
        orchestrator.run(settings, quiet=True)
    assert [problem.path for problem in raised.value.problems] == [path]
    assert not (tmp_path / "runs").exists()


def test_a_partition_that_mixes_shapes_is_refused() -> None:
    settings = sensors()
    settings["data"]["partition"] = {"kind": "iid", "clients": 4}
    with pytest.raises(ConfigError, match="got 'iid', which mixes examples of different clients"):
        prepare(load_experiment(settings).experiment)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("wide", r"client 1 has inputs of shape \(13,\), but rows hold 12 values"),
        ("few", "2 client_shapes are given for 4 clients"),
        ("other", r"input_shape is \(5,\), which no client has"),
    ],
)
def test_shapes_that_the_rows_do_not_hold_are_refused(wrong: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validate(own.load("tests.contract.toy_sensors:data", {"wrong": wrong}))


def test_the_first_clients_shape_is_the_data_sets_where_none_is_given() -> None:
    assert own.load("tests.contract.toy_sensors:data", {}).input_shape == (2, 3)
