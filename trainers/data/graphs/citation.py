"""Cora, CiteSeer and PubMed as graphs; `trainers.data.planetoid` reads them, and makes rows of them for others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from trainers.data import planetoid
from trainers.data.graphs.base import GraphData
from trainers.data.graphs.edges import in_neighbours

NAMES = ("cora", "citeseer", "pubmed")


def load(name: str, folder: Path, normalize: Literal["rows", "none"] = "rows") -> GraphData:
    """Return a citation graph with its public split, both directions of every edge.

    Args:
        folder: the data folder, which holds `planetoid/<name>.npz`.
        normalize: divide each row of features by its sum, or leave them as published.

    Raises:
        DataError: when the file is missing, damaged or not the published graph.
    """
    graph = planetoid.load_graph(name, folder)
    x = planetoid.normalize_rows(graph.x) if normalize == "rows" else graph.x
    src, dst = graph.edge_index
    rows = in_neighbours(name, src, dst, len(graph.y), undirected=False)
    masks = graph.train_mask, graph.val_mask, graph.test_mask
    return GraphData(name, x.toarray(), graph.y, rows.indptr, rows.indices, *masks, graph.num_classes)
