"""Graphs of the Open Graph Benchmark, from a folder of node property prediction as it is downloaded and unzipped.

Read are the compressed texts that every such data set is published as, never the pickles that its own package makes of
them. What is left out: graphs with several kinds of vertices, several labels a vertex, or no features.

Layout (Hu et al. 2020, arXiv:2005.00687; the `raw` and `split` folders of `dataset/ogbn_arxiv`, for instance):

    raw/edge.csv.gz             source,target          a line an edge
    raw/node-feat.csv.gz        numbers                a line a vertex
    raw/node-label.csv.gz       class, or nan          a line a vertex
    raw/num-node-list.csv.gz    number of vertices     one line
    split/<way>/train.csv.gz    number of a vertex     a line each; also valid.csv.gz and test.csv.gz
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pyarrow import csv

from trainers.data.base import DataError
from trainers.data.graphs.base import GraphData, normalize_rows
from trainers.data.graphs.edges import in_neighbours

_FILES = ("num-node-list", "edge", "node-feat", "node-label")
_HINT = "data.path is the unzipped folder of a node property data set, such as dataset/ogbn_arxiv"
_WHERE = "see ogb.stanford.edu/docs/nodeprop for the published ones"


def load(
    path: str,
    *,
    split: str | None = None,
    undirected: bool = True,
    duplicates: Literal["refuse", "drop"] = "refuse",
    normalize: Literal["rows", "none"] = "none",
) -> GraphData:
    """Return the graph of an unzipped folder.

    Args:
        split: folder within `split/`; None where there is one only.
        undirected: add the opposite of every edge, as most published results on these graphs do.
        duplicates: what becomes of an edge that is listed twice.
        normalize: divide each row of features by its sum, or take them as they are.

    Raises:
        DataError: when a file is missing, damaged or of another layout, or the graph is bad.
    """
    folder = Path(path).expanduser()
    files = {name: folder / "raw" / f"{name}.csv.gz" for name in _FILES}
    _require(folder, files)
    counts = _read(files["num-node-list"], np.int64)
    if counts.shape != (1, 1):
        raise DataError(
            f"{files['num-node-list']} counts the vertices of {len(counts)} graphs", f"one graph is needed; {_HINT}"
        )
    num_vertices = int(counts[0, 0])
    x = _rows(files["node-feat"], np.float32, num_vertices)
    y = _labels(files["node-label"], num_vertices)
    edges = _read(files["edge"], np.int64)
    if edges.shape[1] != 2:
        raise DataError(f"{files['edge']} has {edges.shape[1]} columns", "an edge is two numbers, source and target")
    train, val, test = (_mask(file, num_vertices) for file in _split_files(folder, split))
    rows = in_neighbours(
        folder.name, edges[:, 0], edges[:, 1], num_vertices, undirected=undirected, duplicates=duplicates
    )
    return GraphData(
        name=folder.name,
        x=normalize_rows(x) if normalize == "rows" else x,
        y=y,
        indptr=rows.indptr,
        indices=rows.indices,
        train_mask=train,
        val_mask=val,
        test_mask=test,
        num_classes=int(y.max()) + 1,
        notes=rows.notes,
    )


def _require(folder: Path, files: dict[str, Path]) -> None:
    if not (folder / "raw").is_dir():
        raise DataError(f"{folder} has no folder raw", _HINT)
    missing = [file.name for file in files.values() if not file.exists()]
    if not missing:
        return
    here = ", ".join(sorted(entry.name for entry in (folder / "raw").iterdir())) or "nothing"
    reasons = {
        "triplet-type-list.csv.gz": "it has several kinds of vertices, which are not read",
        "data.npz": "its raw files are binary, which are not read",
    }
    found = [reason for name, reason in reasons.items() if (folder / "raw" / name).exists()]
    why = found[0] if found else _HINT
    if missing == ["node-feat.csv.gz"]:
        why = "a graph without features is not read: write it as Parquet, with features, and use name: graph-parquet"
    raise DataError(f"{folder / 'raw'} lacks {', '.join(missing)}; it holds {here}", f"{why}; {_WHERE}")


def _read(file: Path, dtype: type) -> np.ndarray:
    """Return the numbers of a compressed text, a row a line.

    Raises:
        DataError: when it cannot be read, is empty, or holds something else than numbers.
    """
    kind = pa.from_numpy_dtype(dtype)
    try:
        with gzip.open(file, "rt", encoding="ascii") as lines:
            num_columns = lines.readline().count(",") + 1
        names = [str(column) for column in range(num_columns)]
        table = csv.read_csv(
            str(file),
            read_options=csv.ReadOptions(column_names=names),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, kind), null_values=[]),
        )
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise DataError(f"{file} is no whole table of numbers: {error}", "download and unzip it again") from error
    if not len(table):
        raise DataError(f"{file} is empty", "download and unzip it again")
    rows: np.ndarray = np.empty((len(table), num_columns), dtype)
    for index, column in enumerate(table.columns):
        rows[:, index] = column.to_numpy()
    return rows


def _rows(file: Path, dtype: type, num_vertices: int) -> np.ndarray:
    rows = _read(file, dtype)
    if len(rows) != num_vertices:
        raise DataError(f"{file} has {len(rows):,} lines for {num_vertices:,} vertices", "download and unzip it again")
    return rows


def _labels(file: Path, num_vertices: int) -> np.ndarray:
    """Return classes; vertices whose label is nan have none, -1."""
    labels = _rows(file, np.float64, num_vertices)
    if labels.shape[1] != 1:
        raise DataError(f"{file} has {labels.shape[1]} labels a vertex", f"one is read, a class; {_WHERE}")
    classes = np.where(np.isnan(labels[:, 0]), -1, labels[:, 0])
    odd = (classes < -1) | (classes != np.floor(classes))
    if odd.any():
        row = int(np.argmax(odd))
        raise DataError(
            f"{file} has the label {classes[row]:g} in row {row}", "classes are whole numbers from 0, or nan"
        )
    return classes.astype(np.int64)


def _split_files(folder: Path, split: str | None) -> list[Path]:
    ways = sorted(entry.name for entry in (folder / "split").glob("*") if entry.is_dir())
    if not ways:
        raise DataError(f"{folder} has no folder within split", _HINT)
    if split is None and len(ways) > 1:
        raise DataError(f"{folder} is split in several ways: {', '.join(ways)}", f"data.split={ways[0]}")
    if split is not None and split not in ways:
        raise DataError(f"{folder} has no split {split!r} (data.split); it has {', '.join(ways)}", "name one of them")
    way = folder / "split" / (split or ways[0])
    files = [way / f"{part}.csv.gz" for part in ("train", "valid", "test")]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise DataError(f"{way} lacks {', '.join(missing)}", _HINT)
    return files


def _mask(file: Path, num_vertices: int) -> np.ndarray:
    vertices = _read(file, np.int64)[:, 0]
    bad = (vertices < 0) | (vertices >= num_vertices)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{file} names vertex {vertices[row]} in row {row}, with {num_vertices} vertices", "download it again"
        )
    mask = np.zeros(num_vertices, bool)
    mask[vertices] = True
    return mask
