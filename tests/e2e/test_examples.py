"""Every experiment file in `examples/` is read and run small, also those added later."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.config import format_override, load_experiment
from orchestrator.config.grid_points import roles
from orchestrator.config.schema import (
    Experiment,
    Federated,
    GraphPipeline,
    LocalLearning,
    Peers,
    Pipeline,
    Sharded,
    Zero,
)
from orchestrator.search_space import draw
from trainers import data
from trainers.data import Dataset

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
FEW = 300
NEEDS_DATA = ("mnist", "fashion-mnist", "cifar-10", "cifar-10-jpeg", "tiny-shakespeare", "cora", "citeseer", "pubmed")


def small(experiment: Experiment, root: Path) -> dict[str, Any]:
    """The same experiment with two rounds or steps of few clients on few examples, in this process."""
    plain = experiment.model_dump()
    plain["cluster"] |= {"workers": 0, "address": "local"}
    plain |= {"tracking": {"enabled": False}, "storage": {"root": str(root)}, "search": None}
    if isinstance(experiment.strategy, Peers):
        plain["strategy"]["algorithm"]["iterations"] = 2
        if plain["model"].get("pretrain"):
            plain["model"]["pretrain"]["data"] |= {"examples": 260, "test_examples": 52}
        return plain
    if isinstance(experiment.strategy, Pipeline | LocalLearning | Sharded | Zero):
        plain["strategy"] |= {"steps": 2, "batch_size": 8}
        plain["data"]["limit"] = FEW
        if "layers" in plain["model"]:
            plain["model"] |= {"layers": 2, "width": 32}
        if "depth" in plain["model"] and "patch" in plain["model"]:
            plain["model"] |= {"depth": 2, "width": 24}
        return plain
    if isinstance(experiment.strategy, GraphPipeline):
        plain["strategy"] |= {"epochs": 2, "chunks": 2}
        plain["model"]["layers"] = 4
        if "vertices" in plain["data"]:
            plain["data"]["vertices"] = 100
        return plain
    algorithm, partition = plain["strategy"]["algorithm"], plain["data"]["partition"]
    algorithm["rounds"] = plain["evaluate"]["every"] = 2
    clients = partition.get("clients")
    if algorithm["cohort"] != "all":
        algorithm["cohort"] = min(2, algorithm["cohort"])
    if clients is not None and "name" in plain["data"]:
        partition["clients"] = min(clients, 6)
        plain["data"]["limit"] = FEW
    pacing, client = plain["strategy"]["pacing"], plain["strategy"]["client"]
    if "buffer" in pacing:
        pacing["buffer"] = 3
    if client["steps"] is not None:
        client["steps"] = 2
    return plain


def small_grid(experiment: Experiment, root: Path) -> list[str]:
    """Changes that leave of a grid two values of each axis that spans the picture and one of the others, as small."""
    grid, clients = experiment.grid, getattr(experiment.data.partition, "clients", 6)
    assert grid is not None and isinstance(experiment.strategy, Federated)
    drawn = roles(grid)
    kept = {name: 2 if name in (drawn.x, drawn.y) else 1 for name in grid.over}
    over = {
        name: {label: values[label] for label in list(values)[: kept[name]]} if isinstance(values, dict) else
        values[: kept[name]]
        for name, values in grid.over.items()
    }  # fmt: skip
    cohort = experiment.strategy.algorithm.cohort
    changes = {
        "grid.over": over, "grid.parallel": 1, "cluster.workers": 0, "tracking.enabled": False,
        "storage.root": str(root), "data.limit": max(FEW, 10 * clients), "evaluate.every": 2,
        "strategy.algorithm.rounds": 2, "strategy.algorithm.cohort": cohort if cohort == "all" else min(2, cohort),
    }  # fmt: skip
    return [format_override(field, value) for field, value in changes.items()]


@pytest.fixture
def few_test_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets whose test set is small too, for which an experiment file has no field."""
    whole = data.load

    def load(section: Any, *, seed: int) -> Dataset:
        found = whole(section, seed=seed)
        return found._replace(test_x=found.test_x[:FEW], test_y=found.test_y[:FEW])

    monkeypatch.setattr(data, "load", load)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.mark.usefixtures("few_test_examples")
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_read_and_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    experiment = load_experiment(file).experiment
    first, usage = file.read_text().splitlines()[:2]
    assert first.startswith("# ") and usage.startswith("# orchestrator ") and file.name in usage
    if experiment.search is not None:
        assert usage.startswith("# orchestrator tune ")
        assert len(draw(experiment.search, experiment.seed)) >= 2
    if getattr(experiment.data, "name", "") in NEEDS_DATA:
        monkeypatch.setenv("ORCHESTRATOR_DATA", str(request.getfixturevalue("data_folder")))
    if getattr(experiment.data, "name", "") == "parquet":
        table = tmp_path / "table.parquet"
        importlib.import_module(f"examples.{file.stem}").write(table)
        monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
        experiment = load_experiment(file, [format_override("data.path", str(table))]).experiment
    if experiment.grid is not None:
        assert usage.startswith("# orchestrator run ")
        made = orchestrator.grid(file, overrides=small_grid(experiment, tmp_path), quiet=True)
        assert made.failed == () and len(made.table.values()) >= 2
        assert all(0 <= value <= 1 for value in made.table.values())
        return
    result = orchestrator.run(small(experiment, tmp_path), quiet=True)
    assert (result.status, result.step) == ("FINISHED", 2)
    personal = getattr(experiment.strategy, "aggregate_keys", None) is not None
    assert 0 <= result.metrics["clients/accuracy" if personal else "test/accuracy"] <= 1
