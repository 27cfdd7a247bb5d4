"""Folders of the Open Graph Benchmark, written here as they are published: read, and refused when they are not so."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from trainers.data.base import DataError
from trainers.data.graphs import load

FILES = {
    "raw/num-node-list": "5\n",
    "raw/edge": "0,1\n1,2\n2,1\n3,0\n4,4\n",
    "raw/node-feat": "0,1.5\n1,-2\n2,0.25\n3,1e-3\n4,0\n",
    "raw/node-label": "2\n0\n1\n1\nnan\n",
    "split/time/train": "0\n2\n",
    "split/time/valid": "1\n",
    "split/time/test": "3\n",
}


def write(folder: Path, **changes: str | None) -> dict[str, str]:
    for name, text in {**FILES, **{key.replace("__", "/"): text for key, text in changes.items()}}.items():
        path = folder / "ogbn_toy" / f"{name.replace('_', '-')}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_bytes(gzip.compress(text.encode()))
    return {"name": "graph-ogb", "path": str(folder / "ogbn_toy")}


def test_a_published_folder_becomes_a_graph(tmp_path) -> None:
    graph = load(write(tmp_path), seed=0)
    assert graph.name == "ogbn_toy" and graph.num_classes == 3 and graph.y.tolist() == [2, 0, 1, 1, -1]
    assert np.allclose(graph.x, [[0, 1.5], [1, -2], [2, 0.25], [3, 1e-3], [4, 0]]) and graph.x.dtype == np.float32
    assert [part.tolist() for part in np.split(graph.indices, graph.indptr[1:-1])] == [[1, 3], [0, 2], [1], [0], []]
    assert graph.notes == ("1 self-loop left out: layers add their own",)
    assert [np.flatnonzero(mask).tolist() for mask in (graph.train_mask, graph.val_mask, graph.test_mask)] == [
        [0, 2], [1], [3],
    ]  # fmt: skip
    directed = load({**write(tmp_path), "undirected": False}, seed=0)
    assert [part.tolist() for part in np.split(directed.indices, directed.indptr[1:-1])] == [[3], [0, 2], [1], [], []]


def test_one_of_several_splits_is_named(tmp_path) -> None:
    section = write(tmp_path, split__random__train="3\n", split__random__valid="0\n", split__random__test="1\n2\n")
    with pytest.raises(DataError, match=r"split in several ways: random, time\n.*data.split=random"):
        load(section, seed=0)
    graph = load({**section, "split": "random"}, seed=0)
    assert np.flatnonzero(graph.train_mask).tolist() == [3] and np.flatnonzero(graph.test_mask).tolist() == [1, 2]
    with pytest.raises(DataError, match="no split 'tiem'"):
        load({**section, "split": "tiem"}, seed=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"raw__edge": None}, r"lacks edge.csv.gz; it holds node-feat.csv.gz, node-label.csv.gz, num-node-list.csv.gz"),
        ({"raw__node-feat": None}, "lacks node-feat.*\n.*graph without features.*graph-parquet"),
        ({"raw__edge": None, "raw__triplet-type-list": "a,b,c"}, "several kinds of vertices"),
        ({"raw__num-node-list": "5\n4\n"}, "counts the vertices of 2 graphs"),
        ({"raw__num-node-list": "6\n"}, "node-feat.csv.gz has 5 lines for 6 vertices"),
        ({"raw__node-label": "0,1\n" * 5}, "has 2 labels a vertex"),
        ({"raw__node-label": "0\n1\n0.5\n1\n1\n"}, "has the label 0.5 in row 2"),
        ({"raw__node-label": "0\n1\nnan\n1\n1\n"}, "1 vertices of the splits have no label, the first 2"),
        ({"raw__node-feat": "0,1\n1,x\n2,0\n3,1\n4,0\n"}, "node-feat.csv.gz is no whole table of numbers"),
        ({"raw__node-feat": "0,1\n1\n2,0\n3,1\n4,0\n"}, "node-feat.csv.gz is no whole table of numbers"),
        ({"raw__node-feat": "0,1\n1,nan\n2,0\n3,1\n4,0\n"}, "feature 1 of vertex 1 is nan"),
        ({"raw__edge": "0,1\n5,2\n"}, "1 edge of 2 at vertices that do not exist, the first 5 -> 2 in row 1"),
        ({"raw__edge": "0,1\n0,1\n"}, "repeats 1 edge, such as 0 -> 1"),
        ({"raw__edge": "0,1,2\n"}, "has 3 columns"),
        ({"split__time__valid": "9\n"}, "names vertex 9 in row 0"),
        ({"split__time__valid": "0\n"}, "1 vertices are in both train and val, the first 0"),
        ({"split__time__valid": None}, "lacks valid.csv.gz"),
        ({"split__time__valid": ""}, "valid.csv.gz is (empty|no whole table)"),
    ],
)
def test_a_folder_that_is_not_as_published_is_refused(tmp_path, changes, said) -> None:
    with pytest.raises(DataError, match=said):
        load(write(tmp_path, **changes), seed=0)


def test_a_file_that_was_cut_off_and_a_folder_of_something_else_are_refused(tmp_path) -> None:
    section = write(tmp_path)
    path = tmp_path / "ogbn_toy" / "raw" / "edge.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"edge.csv.gz is no whole table"):
        load(section, seed=0)
    with pytest.raises(DataError, match="has no folder raw"):
        load({**section, "path": str(tmp_path)}, seed=0)
