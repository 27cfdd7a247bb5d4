"""Clients that train by a rule of local learning: the serial statement, the rounds engine, and what it saves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.report import write_report
from strategies.local import rule, train_batch, units
from strategies.seeds import generator, integer
from trainers import models, modules
from trainers.local import LocalSettings, Task, batches, train


def experiment(root: Path, **client: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "seed": 3,
        "data": {"name": "digits", "limit": 200, "partition": {"kind": "iid", "clients": 4}},
        "model": {"name": "mlp", "hidden": [24, 24, 24]},
        "strategy": {
            "algorithm": {"name": "fedavg", "rounds": 2, "cohort": 3},
            "client": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}, **client},
        },
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "storage": {"root": str(root)},
    }


@pytest.mark.parametrize("asked", [{"name": "auglocal", "depth": 1, "modules": "paper"}, {"name": "dgl", "modules": 2}])
def test_a_client_makes_the_steps_of_the_serial_program(asked: dict[str, Any]) -> None:
    section = {"name": "mlp", "hidden": [12, 12, 12], "dtype": "float64"}
    shape, x, y = (9,), torch.randn(23, 9, dtype=torch.float64), torch.randint(0, 4, (23,))
    model = models.build({**section, "local_rule": asked}, input_shape=shape, num_classes=4, seed=5)
    settings = LocalSettings(2, None, 7, {"name": "sgd", "lr": 0.1, "momentum": 0.9, "kwargs": {}}, None)
    start = modules.snapshot(model)
    delta = train(model, Task(1, 2, start), x, y, settings, run_seed=8).delta

    plain = models.build(section, input_shape=shape, num_classes=4, seed=5)
    made = rule(asked["name"], **{key: value for key, value in asked.items() if key != "name"})
    parts = made.modules(units(plain), num_classes=4, input_shape=shape, seed=5)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in parts]
    for number, rows in enumerate(batches(23, settings, generator(8, "batches", 2, 1))):
        seed = integer(8, "local rule", 2, 1, number)
        train_batch(parts, optimizers, made, x[rows], y[rows], seed, num_classes=4)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(start[name] + delta[name], parameter.detach(), rtol=0, atol=1e-12)


def test_auxiliary_networks_are_aggregated_with_the_rest_and_left_out_of_evaluation(tmp_path: Path) -> None:
    deep = {**experiment(tmp_path, rule="auglocal"), "model": {"name": "mlp", "hidden": [32] * 10}}
    result = orchestrator.run(deep, quiet=True)
    told = json.loads((result.run_dir / "partition.json").read_text())["rule"]
    assert told["name"] == "auglocal" and told["num_modules"] >= 2 and told["auxiliary_parameters"] > 0
    assert 0 < told["kept_bytes"] < told["backpropagation_bytes"]
    assert "of backpropagation" in write_report(result.run_dir).read_text()


def test_clients_learn_and_the_same_run_twice_gives_the_same_weights(tmp_path: Path) -> None:
    first, second = (orchestrator.run(experiment(tmp_path, rule="auglocal", epochs=8), quiet=True)
                     for _ in range(2))  # fmt: skip
    assert first.metrics["test/accuracy"] > 0.3
    assert first.metrics["test/loss"] == second.metrics["test/loss"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": {"kind": "peers", "client": {"rule": "dgl"}}}, "only clients of a federated strategy"),
        ({"model": {"name": "logistic"}}, "at least 2 units"),
    ],
)
def test_what_cannot_learn_so_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    from orchestrator.preparing import prepare

    with pytest.raises(ConfigError) as caught:
        prepare(load_experiment({**experiment(tmp_path, rule="auglocal"), **changes}))
    assert said in str(caught.value)
