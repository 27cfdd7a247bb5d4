"""Cora, CiteSeer and PubMed: citation graphs with the public split, from one npz file each.

The published originals are Python pickles, and this project does not unpickle what it fetches. There being no
public copy without pickle, the files are not downloaded but put into the data folder, as `LAYOUT` tells.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp

from trainers.data.base import CLASSIFICATION, DataError, Dataset
from trainers.data.download import SETTING

LAYOUT = """x_data float32 (nnz,), x_indices int (nnz,), x_indptr int32 (N + 1,), x_shape int64 (2,): features as CSR;
  edge_index int (2, 2E): both directions of every edge, no self-loops, no duplicates;
  y int64 (N,); train_mask, val_mask, test_mask bool (N,)"""
_KEYS = (
    "x_data", "x_indices", "x_indptr", "x_shape", "edge_index", "y", "train_mask", "val_mask", "test_mask",
)  # fmt: skip


class _Facts(NamedTuple):
    num_vertices: int
    num_edges: int
    num_features: int
    num_classes: int
    sha256: str


FACTS = {
    "cora": _Facts(2708, 5278, 1433, 7, "6fffb3a2884698dbb2fb0a06d744a40a7d41602a183234de4ed504dd42671b25"),
    "citeseer": _Facts(3327, 4552, 3703, 6, "9995ec4487aa66d4d0e9ffa91007b57d0742d8c2195f33d068770be944d83b87"),
    "pubmed": _Facts(19717, 44324, 500, 3, "561324da69e866189f10618e04a8d425cf0bea9259581f5c0fbf79396f3901d1"),
}
_TRAIN_PER_CLASS, _NUM_VAL, _NUM_TEST = 20, 500, 1000


class Graph(NamedTuple):
    """A graph with a feature row and a class for each vertex, and the public split.

    Shapes: `x` CSR float32 `[N, F]` as published, not normalised; `edge_index [2, 2E]` int64, both directions of every
    edge; `y [N]` int64; masks `[N]` bool.
    """

    name: str
    x: sp.csr_matrix
    edge_index: np.ndarray
    y: np.ndarray
    train_mask: np.ndarray
    val_mask: np.ndarray
    test_mask: np.ndarray
    num_classes: int


def load(name: str, folder: Path, normalize: Literal["rows", "none"] = "rows") -> Dataset:
    """Return the labelled vertices as plain rows: what a model that ignores the edges can learn.

    Training rows are those of the public split, 20 a class; test rows its 1,000. Validation rows are left out.

    Args:
        normalize: divide each row of features by its sum, or leave them as published.

    Raises:
        DataError: when the file cannot be had or is not the graph.

    Source: split of Yang, Cohen, Salakhutdinov 2016, arXiv:1603.08861; rows divided by their sum as in Kipf and
    Welling 2017, arXiv:1609.02907, section 5.2.
    """
    graph = load_graph(name, folder)
    x = normalize_rows(graph.x) if normalize == "rows" else graph.x
    return Dataset(
        name=name,
        task=CLASSIFICATION,
        train_x=x[graph.train_mask].toarray(),
        train_y=graph.y[graph.train_mask],
        test_x=x[graph.test_mask].toarray(),
        test_y=graph.y[graph.test_mask],
        num_classes=graph.num_classes,
        input_shape=(x.shape[1],),
    )


def normalize_rows(x: sp.csr_matrix) -> sp.csr_matrix:
    """Divide each row by its sum; empty rows, which CiteSeer has, stay empty."""
    sums = np.asarray(x.sum(axis=1), np.float64).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums != 0)
    return sp.csr_matrix(sp.diags(scale) @ x, dtype=np.float32)


def load_graph(name: str, folder: Path) -> Graph:
    """Return a whole graph with its public split.

    Args:
        name: `cora`, `citeseer` or `pubmed`.
        folder: the data folder, which holds `planetoid/<name>.npz`.

    Raises:
        DataError: when the file is missing, damaged or not the published graph.
    """
    path, facts = folder / "planetoid" / f"{name}.npz", FACTS[name]
    if not path.exists():
        raise DataError(
            f"{path} is missing, and {name} is published as Python pickles only, which are not fetched",
            f"convert github.com/kimiyoung/planetoid data/ind.{name}.* and put the result there; {SETTING}.\n"
            f"  Keys of the npz:\n  {LAYOUT}\n  The copy this was tested with has sha256 {facts.sha256}",
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _KEYS if key not in archive]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)}", f"keys of the npz:\n  {LAYOUT}")
            arrays = {key: archive[key] for key in _KEYS}
        x = sp.csr_matrix(
            (arrays["x_data"].astype(np.float32), arrays["x_indices"].astype(np.int32), arrays["x_indptr"]),
            shape=tuple(int(size) for size in arrays["x_shape"]),
        )
        x.check_format()
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", f"replace it; the sha256 expected is {facts.sha256}") from error
    masks = tuple(arrays[key] for key in ("train_mask", "val_mask", "test_mask"))
    graph = Graph(
        name, x, arrays["edge_index"].astype(np.int64), arrays["y"].astype(np.int64), *masks, facts.num_classes
    )
    _check(path, graph, facts)
    return graph


def _check(path: Path, graph: Graph, facts: _Facts) -> None:
    vertices = facts.num_vertices
    if any(mask.dtype != bool for mask in (graph.train_mask, graph.val_mask, graph.test_mask)):
        raise DataError(f"{path} is not the published graph: its masks are not boolean", f"expected:\n  {LAYOUT}")
    facts_found = {
        "feature matrix": (graph.x.shape, (vertices, facts.num_features)),
        "edge_index": (graph.edge_index.shape, (2, 2 * facts.num_edges)),
        "y": (graph.y.shape, (vertices,)),
        "masks": ({graph.train_mask.shape, graph.val_mask.shape, graph.test_mask.shape}, {(vertices,)}),
        "training vertices": (int(graph.train_mask.sum()), _TRAIN_PER_CLASS * facts.num_classes),
        "validation vertices": (int(graph.val_mask.sum()), _NUM_VAL),
        "test vertices": (int(graph.test_mask.sum()), _NUM_TEST),
        "classes": (set(np.unique(graph.y).tolist()), set(range(facts.num_classes))),
        "vertex numbers": ((int(graph.edge_index.min()) >= 0, int(graph.edge_index.max()) < vertices), (True, True)),
    }
    for what, (found, expected) in facts_found.items():
        if found != expected:
            raise DataError(
                f"{path} is not the published graph: {what} {found}, expected {expected}",
                f"replace it; the sha256 expected is {facts.sha256}",
            )
