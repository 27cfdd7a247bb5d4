"""The resolved file: every field written out, and loading it gives the same experiment; so do the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import load_experiment, to_yaml
from orchestrator.config.document import parse

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"name": "digits"}, "model": {"name": "logistic"}},
        {"data": {"name": "synthetic", "kind": "images", "features": 16}, "model": {"name": "resnet", "depth": 8}},
        {
            "data": {"target": "a.b:c", "kwargs": {"x": [1, None, "on"]}},
            "model": {"target": "a:b", "kwargs": {"e": 1e-9}},
        },
        {
            "data": {"name": "tiny-shakespeare", "partition": {"kind": "column", "min_size": 3}},
            "model": {"name": "transformer"},
            "strategy": {"client": {"steps": 4, "optimizer": {"name": "adam", "kwargs": {"betas": [0.9, 0.99]}}}},
            "search": {"space": {"strategy.client.steps": {"randint": [1, 9]}}, "algorithm": {"name": "pbt"}},
        },
    ],
)
def test_a_resolved_file_gives_the_same_experiment(sections: dict[str, Any], tmp_path: Path) -> None:
    loaded = load_experiment({"name": "x", **sections})
    path = tmp_path / "config.resolved.yaml"
    path.write_text(loaded.text)
    again = load_experiment(path)
    assert again.experiment == loaded.experiment
    assert again.text == loaded.text
    assert again.changed == []


def test_a_resolved_file_names_every_field() -> None:
    experiment = load_experiment({"name": "x", "data": {"name": "digits"}, "model": {"name": "cnn"}}).experiment
    document, _ = parse(to_yaml(experiment), "x")
    assert document.value == experiment.model_dump()
    assert next(iter(document.value["data"])) == "name"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads_and_its_resolved_file_is_the_same(path: Path, tmp_path: Path) -> None:
    loaded = load_experiment(path)
    (tmp_path / "again.yaml").write_text(loaded.text)
    assert load_experiment(tmp_path / "again.yaml").experiment == loaded.experiment


def test_there_are_examples() -> None:
    assert EXAMPLES
