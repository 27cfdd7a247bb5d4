"""Graphs by name and by target: citation graphs, users' own, and what is said of those that do not fit together."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from trainers.data import load as load_rows
from trainers.data.base import DataError
from trainers.data.graphs import load, validate
from trainers.data.graphs.base import ARRAYS
from trainers.data.graphs.own import from_fields
from trainers.data.graphs.registry import GRAPH_NAMES, GRAPH_ONLY
from trainers.data.planetoid import load_graph

GRAPH = load({"name": "sbm", "vertices": 40, "classes": 3, "degree": 4}, seed=0)


@pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
def test_citation_graphs_are_the_published_ones_with_rows_divided_by_their_sum(data_folder, name) -> None:
    graph, published = load({"name": name, "folder": str(data_folder)}, seed=0), load_graph(name, data_folder)
    found = sp.csr_matrix((np.ones(graph.num_edges), graph.indices, graph.indptr), shape=(graph.num_vertices,) * 2)
    src, dst = published.edge_index
    expected = sp.csr_matrix((np.ones(len(src)), (dst, src)), shape=found.shape)
    assert (found != expected).nnz == 0 and (found != found.T).nnz == 0
    assert all(np.array_equal(getattr(graph, field), getattr(published, field)) for field in ("y", *ARRAYS[4:]))
    sums = graph.x.sum(axis=1)
    assert np.allclose(sums[sums != 0], 1, atol=1e-5) and (sums == 0).sum() == {"citeseer": 15}.get(name, 0)
    rows = load_rows({"name": name, "folder": str(data_folder)}, seed=0)
    assert np.array_equal(rows.train_x, graph.x[graph.train_mask])


def test_features_are_as_published_on_request_as_graph_and_as_rows(data_folder) -> None:
    section = {"name": "cora", "folder": str(data_folder), "normalize": "none"}
    graph, rows = load(section, seed=0), load_rows(section, seed=0)
    assert set(np.unique(graph.x)) == {0.0, 1.0}
    assert np.array_equal(rows.test_x, graph.x[graph.test_mask])


@pytest.mark.parametrize("name", GRAPH_ONLY)
def test_a_graph_is_no_rows(name) -> None:
    with pytest.raises(DataError, match=f"{name} is a graph, and this strategy trains on rows\n.*graph-pipeline"):
        load_rows({"name": name}, seed=0)


def test_rows_are_no_graph_and_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(DataError, match=f"'mnist' is no graph\n.*{', '.join(GRAPH_NAMES)}"):
        load({"name": "mnist"}, seed=0)
    with pytest.raises(DataError, match="did you mean power-law"):
        load({"name": "power_law"}, seed=0)


# ------------------------------------------------------------------------------------------------ users' own


def fields(**changes):
    given = {field: getattr(GRAPH, field) for field in ARRAYS}
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


def edge_list():
    return np.stack([GRAPH.indices, np.repeat(np.arange(40), np.diff(GRAPH.indptr))])


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"own_{tmp_path.name}".replace("-", "_")
    yield lambda body: ((tmp_path / f"{name}.py").write_text(body), f"{name}:make")[1]
    sys.modules.pop(name, None)


def test_a_function_beside_the_experiment_makes_a_graph(own_module) -> None:
    target = own_module(
        "import numpy as np\n"
        "def make(n):\n"
        "    ring = np.arange(n)\n"
        "    part = lambda k: ring % 3 == k\n"
        "    return {'name': 'ring', 'x': np.eye(n), 'y': ring % 2, 'train_mask': part(0), 'val_mask': part(1),\n"
        "            'test_mask': part(2), 'edge_index': [ring, (ring + 1) % n]}\n"
    )
    section = {"target": target, "kwargs": {"n": 6}}
    graph = load(section, seed=0)
    assert graph.name == "ring" and graph.num_classes == 2 and graph.indices.tolist() == [5, 0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"returned a graph, and this strategy trains on rows\n.*graph-pipeline"):
        load_rows(section, seed=0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def make(): return 3", "returned int, and this strategy trains on a graph"),
        ("def make(): return {'train_x': [1], 'train_y': [0]}", "returned a dict of train_x, train_y, and this"),
        ("def make(): raise KeyError('gone')", "raised KeyError: 'gone'"),
    ],
)
def test_a_function_that_makes_no_graph_is_told(own_module, body, said) -> None:
    with pytest.raises(DataError, match=said):
        load({"target": own_module(body)}, seed=0)


def test_a_whole_graph_may_be_returned_from_a_function(own_module) -> None:
    target = own_module("from trainers.data.graphs import load\ndef make(): return load({'name': 'sbm'}, seed=3)")
    graph, same = load({"target": target}, seed=0), load({"name": "sbm"}, seed=3)
    assert all(np.array_equal(getattr(graph, field), getattr(same, field)) for field in ARRAYS)
    with pytest.raises(DataError, match="returned a graph"):
        load_rows({"target": target}, seed=0)


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, lambda array: array.tolist()])
def test_arrays_tensors_and_lists_make_the_same_graph_by_edges_or_by_rows(wrap) -> None:
    for given in (fields(), fields(indptr=None, indices=None, edge_index=edge_list()[:, ::-1].copy())):
        graph = validate(from_fields({key: wrap(value) for key, value in given.items()}, name="own"))
        assert all(np.array_equal(getattr(graph, field), getattr(GRAPH, field)) for field in ARRAYS)
        assert graph.name == "own" and graph.num_classes == 3


def test_sparse_features_and_names_are_taken() -> None:
    graph = validate(from_fields(fields(x=sp.csr_matrix(GRAPH.x), class_names=["a", "b", "c"]), name="own"))
    assert np.array_equal(graph.x, GRAPH.x) and graph.class_names == ("a", "b", "c")


def test_self_loops_of_a_list_are_left_out_and_told() -> None:
    listed = np.concatenate([edge_list(), [[3, 4], [3, 4]]], axis=1)
    graph = from_fields(fields(indptr=None, indices=None, edge_index=listed), name="own")
    assert np.array_equal(graph.indices, GRAPH.indices)
    assert graph.notes == ("2 self-loops left out: layers add their own",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"edges": [[0], [1]]}, "unknown field 'edges'"),
        ({"trian_mask": GRAPH.train_mask}, "unknown field 'trian_mask'\n.*did you mean train_mask?"),
        ({"x": None, "val_mask": None}, "no x, val_mask"),
        ({"indptr": None, "indices": None}, "expected either edge_index or indptr and indices"),
        ({"edge_index": edge_list()}, "expected either edge_index or indptr and indices"),
        ({"indptr": None}, "indptr is NoneType"),
        ({"indptr": None, "indices": None, "edge_index": edge_list().T}, r"edge_index has shape \(160, 2\)"),
        ({"indptr": None, "indices": None, "edge_index": edge_list() + 1}, "at vertices that do not exist"),
        ({"x": [["a"]]}, "x is list of <U1"),
        ({"x": [[1], [1, 2]]}, "x is no array"),
        ({"train_mask": np.arange(10)}, "train_mask is ndarray of int64\n.*true or false"),
        ({"y": GRAPH.y + 0.5}, "y is ndarray of float64\n.*whole numbers"),
    ],
)
def test_a_dict_that_describes_no_graph_is_refused(changes, said) -> None:
    with pytest.raises(DataError, match=said):
        from_fields(fields(**changes), name="own")


# ------------------------------------------------------------------------------------------------- validation


def changed(field: str, place: int, value):
    array = getattr(GRAPH, field).copy()
    array.flat[place] = value
    return {field: array}


NO_VERTEX = np.zeros(40, bool)
IN_ROW = next(v for v in range(40) if GRAPH.indptr[v + 1] - GRAPH.indptr[v] > 1)
FIRST = int(GRAPH.indptr[IN_ROW])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": GRAPH.x.astype(np.float64)}, "x is float64\n.*float32"),
        ({"y": GRAPH.y.tolist()}, "y is list"),
        ({"x": GRAPH.x[:-1]}, r"x has shape \(39, 32\)"),
        ({"x": GRAPH.x[:, :0]}, r"x has shape \(40, 0\)"),
        ({"y": GRAPH.y[:0]}, "there are no vertices"),
        ({"val_mask": GRAPH.val_mask[1:]}, r"val_mask has shape \(39,\)"),
        ({"indptr": GRAPH.indptr[:-1]}, r"indptr has shape \(40,\)"),
        (changed("indptr", 40, 3), "indptr does not cut indices into rows"),
        (changed("indptr", 2, 10**6), "indptr does not cut indices into rows"),
        ({"indptr": GRAPH.indptr * 0, "indices": GRAPH.indices[:0]}, "there are no edges"),
        (
            changed("indices", FIRST, 40),
            f"1 of 160 edges come from vertices that do not exist, the first 40 -> {IN_ROW}",
        ),
        (changed("indices", FIRST, -1), "come from vertices that do not exist"),
        (changed("indices", FIRST, IN_ROW), f"vertex {IN_ROW} has a self-loop"),
        (changed("indices", FIRST, GRAPH.indices[FIRST + 1]), f"in-neighbours of vertex {IN_ROW} are not ascending"),
        ({"train_mask": NO_VERTEX}, "the train split is empty"),
        ({"val_mask": NO_VERTEX}, "the val split is empty"),
        ({"test_mask": NO_VERTEX}, "the test split is empty"),
        ({"val_mask": GRAPH.val_mask | GRAPH.test_mask}, "10 vertices are in both val and test"),
        ({"num_classes": 1}, "num_classes is 1"),
        ({"num_classes": 2}, r"14 labels are out of range, the first 2 of vertex \d+, but num_classes is 2"),
        (changed("y", 5, -2), "1 labels are out of range, the first -2 of vertex 5"),
        (changed("y", 5, -1), "1 vertices of the splits have no label, the first 5"),
        ({"class_names": ("a",)}, "1 class_names for 3 classes"),
        (changed("x", 7 * 32 + 4, np.nan), "feature 4 of vertex 7 is nan"),
        (changed("x", 7 * 32 + 4, -np.inf), "feature 4 of vertex 7 is -inf"),
    ],
)
def test_a_graph_that_does_not_fit_together_is_refused(changes, said) -> None:
    with pytest.raises(DataError, match=said):
        validate(GRAPH._replace(**changes))


def test_a_vertex_outside_of_the_splits_needs_no_label() -> None:
    vertex = int(np.argmax(GRAPH.test_mask))
    graph = GRAPH._replace(**changed("y", vertex, -1), **changed("test_mask", vertex, False))
    assert validate(graph) is graph
