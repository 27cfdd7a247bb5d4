"""The folder that workers map a graph from: the same graph again, and nothing that is damaged or half there."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from trainers.data.base import DataError
from trainers.data.graphs import load
from trainers.data.graphs.base import ARRAYS
from trainers.data.graphs.store import open_store, write

GRAPH = load({"name": "sbm", "vertices": 60, "degree": 4}, seed=0)._replace(
    class_names=tuple("abcde"), notes=("one", "two")
)


def test_a_stored_graph_comes_back_the_same_mapped_and_read_only(tmp_path) -> None:
    digest = write(tmp_path / "deep" / "graph", GRAPH)
    back = open_store(tmp_path / "deep" / "graph")
    for field in GRAPH._fields:
        one, other = getattr(GRAPH, field), getattr(back, field)
        assert type(one) is type(other), field
        if field in ARRAYS:
            assert np.array_equal(one, other) and one.dtype == other.dtype and not other.flags.writeable
            assert isinstance(other.base, np.memmap)
        else:
            assert one == other
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["graph"]
    assert digest == json.loads((tmp_path / "deep" / "graph" / "facts.json").read_text())["digest"]


def test_the_same_graph_is_left_as_it_is_and_another_takes_its_place(tmp_path) -> None:
    folder = tmp_path / "graph"
    first = write(folder, GRAPH)
    inode = (folder / "x.npy").stat().st_ino
    mapped = open_store(folder)
    assert write(folder, GRAPH) == first and (folder / "x.npy").stat().st_ino == inode
    assert write(folder, GRAPH._replace(x=GRAPH.x + 1)) != first
    assert np.array_equal(open_store(folder).x, GRAPH.x + 1)
    assert np.array_equal(mapped.x, GRAPH.x), "who has mapped the old one keeps it"
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_writers_at_the_same_time_all_succeed_and_leave_one_graph(tmp_path) -> None:
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: write(tmp_path / "graph", GRAPH), range(12)))
    assert len(set(digests)) == 1 and [path.name for path in tmp_path.iterdir()] == ["graph"]
    assert np.array_equal(open_store(tmp_path / "graph").x, GRAPH.x)


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "a bit flipped": (lambda folder: flip(folder / "indices.npy"), "damaged: indices.npy was changed"),
    "a file cut off": (
        lambda folder: (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-1]),
        r"damaged: x.npy has 7,807 bytes, expected 7,808",
    ),
    "a file missing": (lambda folder: (folder / "y.npy").unlink(), "damaged: .*y.npy"),
    "no facts": (lambda folder: (folder / "facts.json").unlink(), "holds no whole graph: facts.json is missing"),
    "facts cut off": (lambda folder: (folder / "facts.json").write_text("{"), "damaged: facts.json"),
    "facts changed": (
        lambda folder: (folder / "facts.json").write_text(
            (folder / "facts.json").read_text().replace('"num_classes": 5', '"num_classes": 6')
        ),
        "damaged: facts.json was changed",
    ),
    "another format": (
        lambda folder: (folder / "facts.json").write_text('{"format": 99}'),
        "a graph of format 99, expected 1",
    ),
    "facts of another kind": (lambda folder: (folder / "facts.json").write_text("[]"), "damaged: facts.json"),
    "nothing there": (shutil.rmtree, "holds no whole graph"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_and_written_anew(tmp_path, damage) -> None:
    folder = tmp_path / "graph"
    digest = write(folder, GRAPH)
    harm, said = DAMAGES[damage]
    harm(folder)
    with pytest.raises(DataError, match=said):
        open_store(folder)
    assert write(folder, GRAPH) == digest
    assert np.array_equal(open_store(folder).x, GRAPH.x)


def test_without_reading_everything_a_length_still_tells(tmp_path) -> None:
    write(tmp_path / "graph", GRAPH)
    flip(tmp_path / "graph" / "x.npy")
    assert open_store(tmp_path / "graph", verify=False).num_vertices == 60
    (tmp_path / "graph" / "x.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"x.npy has 0 bytes"):
        open_store(tmp_path / "graph", verify=False)


def test_a_place_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "file" / "graph", GRAPH)
