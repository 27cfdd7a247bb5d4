"""The `data:` sections of graphs: what they may say, which strategies take them, and that loading reads the same."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from orchestrator.config import load_experiment
from orchestrator.config.graph_checks import check_graph
from orchestrator.config.graphs import GraphSection
from orchestrator.config.inputs import Data
from orchestrator.config.shape import ROOT, fields
from orchestrator.errors import ConfigError
from trainers.data.graphs import citation, generated, ogb, parquet
from trainers.data.graphs.registry import GRAPH_NAMES, GRAPH_ONLY

PARQUET = {"name": "graph-parquet", "edges": "e.parquet", "vertices": "v.parquet"}
SECTIONS = [PARQUET, {"name": "graph-ogb", "path": "ogbn_arxiv"}, {"name": "sbm"}, {"name": "power-law"}]
LOADERS = {
    "cora": citation.load,
    "graph-parquet": parquet.load,
    "graph-ogb": ogb.load,
    "sbm": generated.sbm,
    "power-law": generated.power_law,
}


def problems(**sections: Any) -> list[tuple[str, str]]:
    raw = {"name": "x", "data": {"name": "digits"}, "model": {"name": "mlp"}, **sections}
    try:
        load_experiment(raw)
    except ConfigError as error:
        return [(problem.path, problem.message) for problem in error.problems]
    return []


def section(value: dict[str, Any]) -> Any:
    return TypeAdapter(Data).validate_python(value)


def found(data: dict[str, Any], kind: str = "graph-pipeline") -> list[str]:
    """Return the fields that the check of a strategy of this kind objects to."""
    strategy, model = SimpleNamespace(kind=kind), SimpleNamespace(pretrain=None)
    experiment: Any = SimpleNamespace(data=section(data), strategy=strategy, model=model)
    return [".".join(map(str, finding.path)) for finding in check_graph(experiment)]


def test_the_schema_and_the_registry_know_the_same_graphs() -> None:
    members = fields(ROOT.model)["data"].members
    assert {name for name, member in members.items() if issubclass(member, GraphSection)} == set(GRAPH_ONLY)
    assert set(GRAPH_NAMES) <= members.keys()


@pytest.mark.parametrize("name", LOADERS)
def test_a_section_has_the_fields_and_defaults_of_what_loads_it(name) -> None:
    model = fields(ROOT.model)["data"].members[name]
    said = {key: info.default for key, info in model.model_fields.items() if not info.is_required()}
    taken = inspect.signature(LOADERS[name]).parameters
    defaults = {key: one.default for key, one in taken.items() if one.default is not inspect.Parameter.empty}
    rows_only = {"partition", "limit", "folder"}
    assert {key: value for key, value in said.items() if key not in rows_only} == defaults
    required = {key for key, info in model.model_fields.items() if info.is_required()} - {"name"}
    assert required == taken.keys() - defaults.keys() - {"seed", "name", "folder"}


@pytest.mark.parametrize("data", SECTIONS)
@pytest.mark.parametrize("kind", ["federated", "peers", "pipeline"])
def test_a_graph_is_refused_by_strategies_that_train_on_rows(data, kind) -> None:
    told = problems(data=data, strategy={"kind": kind})
    said = f"got {data['name']!r}, which is a graph, but a {kind} strategy trains on rows"
    assert told == [("data.name", said)]


def test_pretraining_on_a_graph_is_refused() -> None:
    told = problems(model={"name": "mlp", "pretrain": {"data": {"name": "sbm"}}})
    assert told == [("model.pretrain.data.name", "got 'sbm', which is a graph, but models are first trained on rows")]


@pytest.mark.parametrize("data", [*SECTIONS, {"name": "cora"}, {"target": "a.b:c"}])
def test_a_strategy_on_graphs_takes_graphs(data) -> None:
    assert found(data) == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"name": "digits"}, ["data.name"]),
        ({"name": "cora", "limit": 50}, ["data.limit"]),
        ({"name": "cora", "partition": {"kind": "iid", "clients": 3}}, ["data.partition"]),
        ({"name": "cora", "partition": {"kind": "iid"}}, []),
        ({"target": "a.b:c", "limit": 1, "partition": {"kind": "column"}}, ["data.limit", "data.partition"]),
    ],
)
def test_a_strategy_on_graphs_refuses_rows_and_what_divides_them(data, expected) -> None:
    assert found(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({**PARQUET, "train_fraction": 0.5}, "train_fraction and val_fraction go together"),
        ({**PARQUET, "train_fraction": 0.5, "val_fraction": 0.5}, "leave nothing for testing"),
        ({"name": "sbm", "train_fraction": 0.8}, "train_fraction 0.8 and val_fraction 0.25 leave nothing for testing"),
        ({"name": "power-law", "exponent": 2}, "expected a number above 2"),
        ({"name": "sbm", "exponent": 3}, "unknown key 'exponent'"),
        ({"name": "sbm", "within": 1.5}, "expected a number of at least 0"),
        ({"name": "graph-ogb"}, "is missing"),
        ({**PARQUET, "duplicates": "keep"}, "expected one of refuse, drop"),
        ({"name": "sbm", "partition": {"kind": "iid"}}, "unknown key 'partition'"),
    ],
)
def test_what_a_section_cannot_say_is_told(data, expected) -> None:
    assert any(expected in message for _, message in problems(data=data))


def test_the_address_of_either_table_is_checked() -> None:
    told = problems(data={**PARQUET, "edges": "s4://b/e", "vertices": "http://b/v"})
    assert [path for path, message in told if "is no file system here" in message] == ["data.edges", "data.vertices"]
