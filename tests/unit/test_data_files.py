"""Readers of published files: what they make of the real files, and of damaged ones."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest

from trainers.data import DataError, load
from trainers.data.idx import read_idx
from trainers.data.planetoid import load_graph
from trainers.data.shakespeare import speeches

IDX = bytes((0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3)) + bytes(range(6))


def test_an_idx_file_is_read_as_it_was_written(tmp_path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(IDX, mtime=0))
    assert read_idx(path, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(IDX, mtime=0)[:-9], "is damaged"),
        (b"not gzip", "is damaged"),
        (gzip.compress(IDX[:-1], mtime=0), "holds 17 bytes, expected 18"),
        (gzip.compress(IDX + b"x", mtime=0), "holds more bytes, expected 18"),
        (gzip.compress(b"", mtime=0), "does not begin as an idx file"),
        (gzip.compress(IDX[:2] + b"\x0d" + IDX[3:], mtime=0), "does not begin as an idx file"),
        (gzip.compress(IDX[:7] + b"\x09" + IDX[8:], mtime=0), "does not begin as an idx file"),
    ],
)
def test_a_damaged_idx_file_is_refused(tmp_path, content, said) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_idx(path, (2, 3))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_images_have_the_published_counts_and_pixels(data_folder, name) -> None:
    data = load({"name": name, "folder": str(data_folder)}, seed=0)
    assert data.train_x.shape == (60000, 28, 28) and data.test_x.shape == (10000, 28, 28)
    mean, std = data.scale
    assert (data.train_x / 255).mean() == pytest.approx(mean, abs=1e-4)
    assert (data.train_x / 255).std() == pytest.approx(std, abs=1e-4)
    counts = {
        "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "fashion-mnist": [6000] * 10,
    }
    assert np.bincount(data.train_y).tolist() == counts[name]


@pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
def test_graphs_have_the_public_split_and_both_directions_of_every_edge(data_folder, name) -> None:
    graph = load_graph(name, data_folder)
    edges = set(map(tuple, graph.edge_index.T.tolist()))
    assert len(edges) == graph.edge_index.shape[1]
    assert edges == {(target, source) for source, target in edges}
    assert np.bincount(graph.y[graph.train_mask]).tolist() == [20] * graph.num_classes
    data = load({"name": name, "folder": str(data_folder)}, seed=0)
    assert data.train_x.shape == (20 * graph.num_classes, graph.x.shape[1])
    sums = data.test_x.sum(axis=1)
    assert sums[sums > 0] == pytest.approx(1.0, abs=1e-5)


def test_a_missing_graph_says_where_to_put_it_and_how_it_is_laid_out(tmp_path) -> None:
    with pytest.raises(DataError) as caught:
        load({"name": "cora", "folder": str(tmp_path)}, seed=0)
    assert str(tmp_path / "planetoid" / "cora.npz") in caught.value.message
    for part in ("ORCHESTRATOR_DATA", "x_indptr", "edge_index", "6fffb3a2", "github.com/kimiyoung/planetoid"):
        assert part in caught.value.hint


def damage(name, path, data_folder):
    arrays = dict(np.load(data_folder / "planetoid" / "cora.npz"))
    if name == "cut":
        path.write_bytes((data_folder / "planetoid" / "cora.npz").read_bytes()[:-100])
        return
    if name == "empty":
        zipfile.ZipFile(path, "w").close()
        return
    if name == "pickled":
        arrays["y"] = arrays["y"].astype(object)
    elif name == "column":
        arrays["x_indices"][5] = 2000
    elif name == "vertex":
        arrays["edge_index"][0, 0] = 5000
    elif name == "mask":
        arrays["train_mask"][arrays["train_mask"].argmax()] = False
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", "is damaged"),
        ("empty", "lacks x_data"),
        ("pickled", "is damaged"),
        ("column", "is damaged"),
        ("vertex", "vertex numbers"),
        ("mask", "training vertices 139, expected 140"),
    ],
)
def test_a_damaged_graph_is_refused(data_folder, tmp_path, how, said) -> None:
    path = tmp_path / "planetoid" / "cora.npz"
    path.parent.mkdir()
    damage(how, path, data_folder)
    with pytest.raises(DataError, match=said):
        load_graph("cora", tmp_path)


def test_speeches_are_read_off_name_lines() -> None:
    play = "First Citizen:\nHear me:\nspeak.\n\nAll:\n\nSECOND  LORD:\nOnce\n\nmore.\n"
    found = [(speech.speaker, play[speech.start : speech.stop]) for speech in speeches(play)]
    assert found == [("First Citizen", "Hear me:\nspeak."), ("SECOND LORD", "Once\n\nmore.")]


def test_speeches_agree_with_the_published_table(data_folder) -> None:
    folder = data_folder / "tinyshakespeare"
    found = speeches((folder / "input.txt").read_text())
    with np.load(folder / "speakers.npz") as table:
        names = table["speaker_names"][table["speech_speaker"]].tolist()
        assert [speech.speaker for speech in found] == names
        assert [speech.start for speech in found] == table["speech_start"].tolist()
        assert [speech.stop for speech in found] == table["speech_end"].tolist()


def test_sequences_stay_with_their_speaker_and_targets_are_one_ahead(data_folder) -> None:
    data = load({"name": "tiny-shakespeare", "folder": str(data_folder), "sequence_length": 40, "stride": 17}, seed=0)
    assert np.array_equal(data.train_x[:, 1:], data.train_y[:, :-1])
    text = (data_folder / "tinyshakespeare" / "input.txt").read_text()
    said = {}
    for speech in speeches(text):
        if speech.start < 0.9 * len(text):
            said[speech.speaker] = said.get(speech.speaker, "") + text[speech.start : speech.stop] + "\n"
    for row in range(0, len(data.train_x), 997):
        sequence = "".join(data.class_names[token] for token in data.train_x[row])
        assert sequence in said[data.client_names[data.client_of[row]]]
    expected = sum(max(0, -(-(len(own) - 40) // 17)) for own in said.values())
    assert len(data.train_x) == expected
    assert set(np.unique(data.client_of)) == set(range(len(data.client_names)))
