"""The page on data says what the code does: its example runs, and it names all there is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from strategies.partition import partition
from trainers.data import graphs, load
from trainers.data.base import Dataset
from trainers.data.graphs import GraphData
from trainers.data.graphs.registry import GRAPH_NAMES
from trainers.data.registry import NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()


def test_the_example_function_loads_with_its_clients(tmp_path, monkeypatch) -> None:
    (example,) = re.findall(r"```python\n# my_data.py\n(.*?)```", PAGE, re.S)
    name = f"docs_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    data = load({"target": f"{name}:rings", "kwargs": {"num_examples": 2000}}, seed=0)
    assert data.client_names == ("ann", "ben", "zoe") and data.num_classes == 2
    made = partition({"kind": "column"}, data.train_y, data.client_of, 1000, np.random.default_rng(0))
    assert made.num_clients == 3


def test_the_example_graph_loads_undirected(tmp_path, monkeypatch) -> None:
    (example,) = re.findall(r"```python\n# my_graph.py\n(.*?)```", PAGE, re.S)
    name = f"graph_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    graph = graphs.load({"target": f"{name}:grid", "kwargs": {"side": 20}}, seed=0)
    assert (graph.num_vertices, graph.num_edges, graph.num_classes) == (400, 2 * 2 * 20 * 19, 2)


WORDS = [*NAMES, *Dataset._fields, *GRAPH_NAMES, *GraphData._fields, "iid", "dirichlet", "shards", "column"]


@pytest.mark.parametrize("name", WORDS)
def test_the_page_names_every_data_set_field_and_partition(name) -> None:
    assert f"`{name}`" in PAGE


def test_the_numbers_of_the_page_are_those_of_the_data(data_folder) -> None:
    for name, train, test in re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \+ ([\d,]+) \|", PAGE, re.M):
        data = load({"name": name, "folder": str(data_folder)}, seed=0)
        assert (f"{len(data.train_x):,}", f"{len(data.test_x):,}") == (train, test)
    speakers = load({"name": "tiny-shakespeare", "folder": str(data_folder)}, seed=0).client_names
    assert f"{len(speakers)} speakers" in PAGE
