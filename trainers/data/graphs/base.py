"""What a graph with labelled vertices is once loaded: plain numpy arrays, edges as rows of in-neighbours.

Arrays rather than a library's graph object, because arrays can be written once and mapped by every worker. What is left
out: edge weights, edge features and several kinds of vertices.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class GraphData(NamedTuple):
    """One graph, in memory or mapped into it: a feature row and a class for each vertex, and who is trained on.

    Args:
        name: how it is called in messages and reports.
        x: features.
        y: classes from 0; -1 where a vertex has none, which only vertices outside of the three masks may.
        indptr: where each vertex's in-neighbours begin in `indices`, and where the last ones end.
        indices: for each vertex v in turn the vertices u with an edge u -> v, from which v aggregates: ascending, none
            twice, v itself never (layers add self-loops as they need them).
        train_mask, val_mask, test_mask: vertices whose loss is minimised, that choose the model, and that judge it.
            No vertex is in two of them; some may be in none.
        class_names: names of the classes, by number, for reports.
        notes: what loading left out, in words for the user.

    Shapes: `x [N, F]` float32, `y [N]` int64, `indptr [N + 1]` int64, `indices [E]` int64, masks `[N]` bool.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    train_mask: np.ndarray
    val_mask: np.ndarray
    test_mask: np.ndarray
    num_classes: int
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def num_vertices(self) -> int:
        return len(self.y)

    @property
    def num_edges(self) -> int:
        """Directed edges; an undirected one counts twice."""
        return len(self.indices)

    @property
    def num_features(self) -> int:
        return int(self.x.shape[1])


ARRAYS = ("x", "y", "indptr", "indices", "train_mask", "val_mask", "test_mask")
"""The fields of a graph that are arrays."""


def normalize_rows(x: np.ndarray) -> np.ndarray:
    """Return features divided by their row's sum; rows that sum to nothing stay as they are.

    Source: Kipf and Welling 2017, arXiv:1609.02907, section 5.2.
    """
    sums = x.sum(axis=1, dtype=np.float64)
    scale = np.divide(1.0, sums, out=np.ones_like(sums), where=sums != 0)
    return (x * scale[:, None]).astype(np.float32)
