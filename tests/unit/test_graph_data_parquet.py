"""Graphs from tables of edges and vertices: what columns become, and what is said of those that cannot be used."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.data.base import DataError
from trainers.data.graphs import load

IDS = ["ant", "bee", "cow", "dog", "eel", "fox"]
X = np.arange(12, dtype=np.float32).reshape(6, 2)
SPLIT = ["train", "Train", "VAL", "test", " Test ", None]
EDGES = [("ant", "bee"), ("bee", "cow"), ("dog", "ant"), ("cow", "bee")]


def vertices(**changes):
    table = {"id": IDS, "features": list(X), "label": ["yes", "no", "yes", "no", "no", None], "split": SPLIT}
    return {key: value for key, value in {**table, **changes}.items() if value is not None}


def edges(pairs=tuple(EDGES), names=("src", "dst")):
    return {name: [pair[side] for pair in pairs] for side, name in enumerate(names)}


@pytest.fixture
def section(tmp_path):
    """Return a section whose tables are written by the call."""

    def write(edge_table=None, vertex_table=None, **changes):
        pq.write_table(pa.table(edges() if edge_table is None else edge_table), tmp_path / "e.parquet")
        pq.write_table(pa.table(vertex_table or vertices()), tmp_path / "v.parquet", row_group_size=4)
        paths = {"edges": str(tmp_path / "e.parquet"), "vertices": str(tmp_path / "v.parquet")}
        return {"name": "graph-parquet", **paths, **changes}

    return write


def neighbours(graph) -> list[list[int]]:
    return [part.tolist() for part in np.split(graph.indices, graph.indptr[1:-1])]


def test_two_tables_become_a_graph_in_the_order_of_the_vertices(section) -> None:
    graph = load(section(), seed=0)
    assert np.array_equal(graph.x, X) and graph.x.dtype == np.float32
    assert graph.y.tolist() == [1, 0, 1, 0, 0, -1] and graph.class_names == ("no", "yes") and graph.num_classes == 2
    assert np.flatnonzero(graph.train_mask).tolist() == [0, 1]
    assert np.flatnonzero(graph.val_mask).tolist() == [2] and np.flatnonzero(graph.test_mask).tolist() == [3, 4]
    assert neighbours(graph) == [[1, 3], [0, 2], [1], [0], [], []] and graph.notes == ()


def test_directed_edges_lead_to_the_vertex_that_aggregates(section) -> None:
    assert neighbours(load(section(undirected=False), seed=0)) == [[3], [0, 2], [1], [], [], []]


def test_columns_may_have_any_names_and_ids_any_whole_numbers(section) -> None:
    numbers = np.array([-5, 10**15, 7, 3, 4, 0])
    columns = {"key": numbers, "a": X[:, 0], "b": X[:, 1].astype(np.float64), "class": [0, 1, 2, 0, 1, 2]}
    pairs = [(-5, 10**15), (0, 7)]
    made = section(
        edges(pairs, ("from", "to")), {**columns, "part": SPLIT},
        src="from", dst="to", id="key", features=["a", "b"], label="class", split="part",
    )  # fmt: skip
    graph = load(made, seed=0)
    assert neighbours(graph) == [[1], [0], [5], [], [], [2]] and np.array_equal(graph.x, X)
    assert graph.num_classes == 3 and graph.class_names is None


def test_ids_are_the_same_whatever_type_of_text_or_of_number_holds_them(section) -> None:
    coded = pa.array(IDS).dictionary_encode()
    plain = load(section(), seed=0)
    assert np.array_equal(load(section(None, vertices(id=coded)), seed=0).indices, plain.indices)
    small = {"src": pa.array([0, 1], pa.uint8()), "dst": pa.array([1, 2], pa.int16())}
    assert neighbours(load(section(small, vertices(id=np.arange(6))), seed=0))[:3] == [[1], [0, 2], [1]]


def test_a_folder_of_parts_is_one_table(section, tmp_path) -> None:
    made = section()
    for index, part in enumerate((EDGES[:1], EDGES[1:])):
        (tmp_path / "parts").mkdir(exist_ok=True)
        pq.write_table(pa.table(edges(part)), tmp_path / "parts" / f"{index}.parquet")
    whole, parts = (load({**made, "edges": where}, seed=0) for where in (made["edges"], str(tmp_path / "parts")))
    assert np.array_equal(whole.indices, parts.indices) and np.array_equal(whole.indptr, parts.indptr)


def test_a_split_is_drawn_from_the_labelled_vertices_by_the_seed(section) -> None:
    made = section(None, vertices(split=None), train_fraction=0.4, val_fraction=0.2)
    masks = [
        [np.flatnonzero(mask).tolist() for mask in (graph.train_mask, graph.val_mask, graph.test_mask)]
        for graph in (load(made, seed=seed) for seed in (0, 0, 1, 2, 3))
    ]
    assert [len(part) for part in masks[0]] == [2, 1, 2] and sorted(i for part in masks[0] for i in part) == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert masks[0] == masks[1] and any(other != masks[0] for other in masks[2:])


def test_lists_of_bytes_are_numbers_and_no_pixels(section) -> None:
    words = pa.array([[0, 255]] * 6, pa.list_(pa.uint8()))
    assert load(section(None, vertices(features=words)), seed=0).x.tolist() == [[0.0, 255.0]] * 6


def test_rows_of_features_are_divided_by_their_sum_on_request(section) -> None:
    x = load(section(normalize="rows"), seed=0).x
    assert np.allclose(x.sum(axis=1), 1) and np.allclose(x[1], [0.4, 0.6])


def test_self_loops_and_repeated_edges_are_left_out_and_counted(section) -> None:
    pairs = [*EDGES, ("fox", "fox"), ("ant", "bee"), ("ant", "bee")]
    graph = load(section(edges(pairs), duplicates="drop"), seed=0)
    assert neighbours(graph) == [[1, 3], [0, 2], [1], [0], [], []]
    assert graph.notes == ("1 self-loop left out: layers add their own", "2 repeated edges left out")


BAD = {
    "dangling ids": (
        edges([*EDGES, ("ant", "gnu"), ("yak", "ant")]), None, {},
        r"2 of 6 edges of .*e.parquet are at ids that .*v.parquet does not have, the first 'gnu' in column 'dst'",
    ),
    "repeated edges": (edges([*EDGES, ("dog", "ant")]), None, {}, r"repeats 1 edge, such as 'dog' -> 'ant'"),
    "only self-loops": (edges([("ant", "ant")]), None, {}, "has no edges besides self-loops"),
    "no edges": (pa.table(edges()).slice(0, 0), None, {}, "e.parquet has no rows"),
    "ids of two types": (edges([(1, 2)]), None, {}, "column 'src' of .* is int64, but the ids of .* are large_string"),
    "ids that are floats": (None, vertices(id=np.arange(6.0)), {}, "is double, which cannot be an id"),
    "ids beyond 64 bits": (None, vertices(id=pa.array([2**64 - 1, 1, 2, 3, 4, 5], pa.uint64())), {}, "beyond 64 bits"),
    "a null id": (None, vertices(id=[*IDS[:5], None]), {}, "'id' has 1 nulls .* row 5 of"),
    "a null end": ({"src": ["ant", None], "dst": ["bee", "cow"]}, None, {}, "'src' has 1 nulls .* row 1 of"),
    "repeated ids": (None, vertices(id=[*IDS[:5], "bee"]), {}, "'id' of .* repeats 1 ids, the first 'bee'"),
    "a feature that is NaN": (
        None, vertices(features=[*X[:5].tolist(), [1.0, float("nan")]]), {}, "'features' has nan in row 5 of",
    ),
    "a feature too large": (
        None, vertices(features=[*X[:5].tolist(), [1.0, 1e300]]), {}, "feature 1 of vertex 5 is inf",
    ),
    "an empty split": (None, vertices(split=["train"] * 5 + ["test"]), {}, "the val split is empty"),
    "another split": (None, vertices(split=[*SPLIT[:5], "dev"]), {}, "'split' has 'dev' in row 5 of"),
    "a split of numbers": (None, vertices(split=np.arange(6)), {}, "is int64"),
    "a missing label": (
        None, vertices(label=[None, "a", None, "a", "b", "b"]), {}, "2 vertices of the splits have no label",
    ),
    "a negative label": (None, vertices(label=[0, None, -1, 0, 1, 1]), {}, "'label' has -1 in row 2 of"),
    "one class": (None, vertices(label=[0] * 6), {}, "num_classes is 1"),
    "no split": (None, vertices(split=None), {}, "no column 'split'.*\n.*train_fraction=0.6"),
    "two splits": (None, None, {"train_fraction": 0.5, "val_fraction": 0.2}, "column 'split', and data.train_fraction"),
    "a missing column": (None, None, {"src": "scr"}, "no column 'scr'.*\n.*did you mean src"),
    "a missing file": (None, None, {"edges": "/nowhere"}, "/nowhere does not exist\n.*data.edges is a file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_graph_is_refused_with_what_is_bad_and_where(section, case) -> None:
    edge_table, vertex_table, changes, said = BAD[case]
    with pytest.raises(DataError, match=said):
        load(section(edge_table, vertex_table, **changes), seed=0)
