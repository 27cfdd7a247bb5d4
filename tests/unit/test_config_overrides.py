"""Overrides: what may be typed after the file, what it does, what is told, and the list of what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import format_override, load_experiment
from orchestrator.config.loading import Loaded
from orchestrator.errors import ConfigError, Problem

FILE = """\
name: exp
data:
  name: digits
  partition: {kind: dirichlet, clients: 20, alpha: 0.3}
model: {name: mlp, hidden: [50, 40]}
strategy:
  client: {epochs: 1}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "exp.yaml"
    path.write_text(FILE)
    return path


def load(file: Path, *overrides: str) -> Loaded:
    return load_experiment(file, overrides)


def told(file: Path, *overrides: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_experiment(file, overrides)
    return list(caught.value.problems)


def value(loaded: Loaded, field: str) -> Any:
    found: Any = loaded.experiment.model_dump()
    for part in field.split("."):
        found = found[int(part) if isinstance(found, list) else part]
    return found


@pytest.mark.parametrize(
    ("override", "field", "expected"),
    [
        ("strategy.client.epochs=2", "strategy.client.epochs", 2),
        ("strategy.client.optimizer.lr=1e-3", "strategy.client.optimizer.lr", 1e-3),
        ("data.limit=null", "data.limit", None),
        ("model.hidden=[10]", "model.hidden", [10]),
        ("model.hidden.1=30", "model.hidden", [50, 30]),
        ("model={name: logistic}", "model.name", "logistic"),
        ("tracking.enabled=off", "tracking.enabled", False),
        ("tracking.experiment='a: b'", "tracking.experiment", "a: b"),
        ("storage.root=/tmp/x=y", "storage.root", "/tmp/x=y"),
        ("cluster.resources_per_worker.GPU=1", "cluster.resources_per_worker", {"CPU": 1.0, "GPU": 1.0}),
        ("strategy.client.optimizer.kwargs.nesterov=true", "strategy.client.optimizer.kwargs", {"nesterov": True}),
        ("strategy.behaviour.speed={kind: lognormal, sigma: 2}", "strategy.behaviour.speed.sigma", 2.0),
        (" seed = 4 ", "seed", 4),
    ],
)
def test_an_override_sets_a_field(file: Path, override: str, field: str, expected: Any) -> None:
    assert value(load(file, override), field) == expected


def test_a_later_override_wins(file: Path) -> None:
    assert load(file, "seed=1", "seed=2").experiment.seed == 2


def test_a_field_of_a_section_that_the_file_leaves_out_starts_from_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text("name: exp\ndata: {name: digits}\nmodel: {name: mlp}\n")
    loaded = load(path, "data.partition.clients=7", "model.hidden.0=5")
    assert value(loaded, "data.partition") == {"kind": "iid", "clients": 7}
    assert value(loaded, "model.hidden") == [5]


def test_a_search_field_may_hold_dots(file: Path) -> None:
    space = "search.space.strategy.client.optimizer.lr"
    loaded = load(file, f"{space}={{choice: [0.1, 0.2]}}", f"{space}.choice.1=0.3", "search.trials=3")
    assert value(loaded, "search.space") == {"strategy.client.optimizer.lr": {"choice": [0.1, 0.3]}}


def test_a_mapping_serves_as_overrides(file: Path) -> None:
    assert load_experiment(file, {"model.hidden": [3], "seed": 8}).changed == [
        "seed: 0 -> 8",
        "model.hidden: [50, 40] -> [3]",
    ]


def test_what_changed_is_listed_against_the_file(file: Path) -> None:
    loaded = load(file, "strategy.client.epochs=2", "seed=0", "data.partition={kind: iid, clients: 20}")
    assert loaded.changed == [
        "data.partition.kind: 'dirichlet' -> 'iid'",
        "strategy.client.epochs: 1 -> 2",
        "data.partition.alpha: 0.3 -> (unset)",
        "data.partition.min_size: 1 -> (unset)",
    ]


def test_nothing_changed_is_an_empty_list(file: Path) -> None:
    assert load(file).changed == []
    assert load(file, "strategy.client.epochs=1").changed == []


def test_what_changed_is_listed_when_the_file_alone_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text("data: {name: digits}\nmodel: {name: mlp}\n")
    assert load(path, "name=x", "model.hidden=[3]").changed == ["name: (unset) -> 'x'", "model.hidden: (unset) -> [3]"]


@pytest.mark.parametrize(
    ("override", "path", "message", "hint"),
    [
        ("seed", "", "got 'seed', expected field=value", "type seed=VALUE"),
        ("exp2.yaml", "", "got 'exp2.yaml', expected field=value", "one experiment file at a time"),
        ("=3", "", "got '=3', expected a dotted field before '='", "such as: strategy.client.epochs=2"),
        ("a..b=3", "", "got 'a..b=3', expected a dotted field before '='", "such as: strategy.client.epochs=2"),
        ("seed=", "seed", "has no value after '='", "type seed=null for none, or seed=\"''\" for empty text"),
        ("seed=-1", "seed", "got -1, expected a whole number of at least 0",
         "seed: the same seed gives the same run, bit for bit"),
        ("sed=3", "sed", "unknown key 'sed'", "did you mean seed?"),
        ("lr=3", "lr", "unknown key 'lr'", "did you mean strategy.client.optimizer.lr?"),
        ("client.epochs=3", "client", "unknown key 'client'", "did you mean strategy.client.epochs?"),
        ("strategy.clinet.epochs=3", "strategy.clinet", "unknown key 'clinet'", "did you mean strategy.client.epochs?"),
        ("name.x=3", "name.x", "name is exp, which has no fields", "set name itself: name=VALUE"),
        ("model.hidden.2=3", "model.hidden.2", "has no item '2': the list has 2 items, the last is 1",
         "or give the whole list: model.hidden=[...]"),
        ("model.hidden.x=3", "model.hidden.x", "has no item 'x': the list has 2 items, the last is 1",
         "or give the whole list: model.hidden=[...]"),
        ("tracking.uri={a", "tracking.uri",
         "is not valid YAML: expected ',' or '}', but got '<stream end>' while parsing a flow mapping",
         "quote it for YAML: tracking.uri=\"'...'\", or write {a: 1} or [1, 2]"),
    ],
)  # fmt: skip
def test_a_bad_override_is_told(file: Path, override: str, path: str, message: str, hint: str) -> None:
    assert told(file, override) == [Problem("command line", path, message, hint)]


def test_another_kind_of_section_is_told_what_the_file_says_that_it_does_not_have(file: Path) -> None:
    assert told(file, "data.partition.kind=iid") == [
        Problem(
            "command line",
            "data.partition.kind",
            f"kind is now 'iid', which does not have what the file says: alpha ({file}:4)",
            "replace the whole section: data.partition='{kind: iid, clients: 20}'",
        )
    ]


def test_all_bad_overrides_are_told_at_once_after_the_problems_of_the_file(file: Path) -> None:
    file.write_text(FILE.replace("epochs: 1", "epochs: 0"))
    assert [(p.where, p.path) for p in told(file, "seed=x", "modle.name=cnn", "y")] == [
        (f"{file}:7", "strategy.client.epochs"),
        ("command line", ""),
        ("command line", "seed"),
        ("command line", "modle"),
    ]


def test_a_whole_section_from_the_command_line_is_the_place_of_what_is_wrong_inside(file: Path) -> None:
    [problem] = told(file, "data.partition={kind: iid, clients: 0}")
    assert (problem.where, problem.path) == ("command line", "data.partition.clients")


@pytest.mark.parametrize("text", ["on", "a: b", "1e-3", "{", "", "x,y", "'", "null"])
def test_text_survives_as_an_override_that_we_write(file: Path, text: str) -> None:
    loaded = load(file, format_override("strategy.client.optimizer.kwargs.note", text))
    assert loaded.experiment.strategy.client.optimizer.kwargs == {"note": text}
