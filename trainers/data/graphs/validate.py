"""Checks that a graph is what it says, once, before anything is trained on it.

What is left out: whether the graph is any good, and edges' meaning.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from trainers.data.base import DataError
from trainers.data.graphs.base import ARRAYS, GraphData

_CHUNK_VALUES = 1 << 22
_DTYPES = {"x": "float32", "y": "int64", "indptr": "int64", "indices": "int64"}
_MASKS = ("train_mask", "val_mask", "test_mask")


def validate(graph: GraphData) -> GraphData:
    """Return the graph unchanged when its parts fit together.

    Raises:
        DataError: naming the first field that does not fit, and the first bad vertex.
    """
    for field in ARRAYS:
        array, dtype = getattr(graph, field), _DTYPES.get(field, "bool")
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
            raise _error(graph, f"{field} is {found}", f"expected a numpy array of {dtype}")
    num_vertices = graph.y.size
    if num_vertices == 0:
        raise _error(graph, "there are no vertices", "give a row of features and a label for each")
    if graph.x.ndim != 2 or len(graph.x) != num_vertices or graph.x.shape[1] == 0:
        raise _error(graph, f"x has shape {graph.x.shape}, y {graph.y.shape}", "give one row of features a vertex")
    for field in ("y", *_MASKS):
        if getattr(graph, field).shape != (num_vertices,):
            raise _error(
                graph, f"{field} has shape {getattr(graph, field).shape}", f"expected one a vertex, ({num_vertices},)"
            )
    _check_edges(graph)
    _check_masks(graph)
    _check_labels(graph)
    _check_finite(graph)
    return graph


def _error(graph: GraphData, message: str, hint: str) -> DataError:
    return DataError(f"graph {graph.name}: {message}", hint)


def _check_edges(graph: GraphData) -> None:
    indptr, indices, vertices = graph.indptr, graph.indices, graph.num_vertices
    if indptr.shape != (vertices + 1,) or indices.ndim != 1:
        raise _error(
            graph, f"indptr has shape {indptr.shape}, indices {indices.shape}", f"expected ({vertices + 1},) and (E,)"
        )
    if indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise _error(
            graph,
            "indptr does not cut indices into rows",
            f"it rises from 0 to the {len(indices)} edges, never falling",
        )
    if not len(indices):
        raise _error(graph, "there are no edges", "give its edges; without them an mlp does as well")
    bad = (indices < 0) | (indices >= vertices)
    rows = np.repeat(np.arange(vertices), np.diff(indptr))
    if bad.any():
        first = int(np.argmax(bad))
        raise _error(
            graph,
            f"{int(bad.sum())} of {len(indices)} edges come from vertices that do not exist, the first "
            f"{indices[first]} -> {rows[first]}",
            f"vertices count from 0 to {vertices - 1}",
        )
    if (loops := indices == rows).any():
        raise _error(graph, f"vertex {rows[np.argmax(loops)]} has a self-loop", "leave them out: layers add their own")
    falls = (np.diff(indices) <= 0) & (rows[1:] == rows[:-1])
    if falls.any():
        first = int(np.argmax(falls))
        raise _error(
            graph,
            f"the in-neighbours of vertex {rows[first]} are not ascending or repeat: {indices[first]}, "
            f"{indices[first + 1]}",
            "give edge_index instead of indptr and indices, and they are sorted",
        )


def _check_masks(graph: GraphData) -> None:
    for field in _MASKS:
        if not getattr(graph, field).any():
            raise _error(
                graph,
                f"the {field.removesuffix('_mask')} split is empty",
                "training, validation and test need a vertex each at least",
            )
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        both = getattr(graph, f"{one}_mask") & getattr(graph, f"{other}_mask")
        if both.any():
            raise _error(
                graph,
                f"{int(both.sum())} vertices are in both {one} and {other}, the first {int(np.argmax(both))}",
                "a vertex belongs to one split at most",
            )


def _check_labels(graph: GraphData) -> None:
    if graph.num_classes < 2:
        raise _error(graph, f"num_classes is {graph.num_classes}", "a model needs at least 2 classes")
    if graph.class_names is not None and len(graph.class_names) != graph.num_classes:
        raise _error(graph, f"{len(graph.class_names)} class_names for {graph.num_classes} classes", "give one a class")
    used = graph.train_mask | graph.val_mask | graph.test_mask
    missing = used & (graph.y == -1)
    if missing.any():
        raise _error(
            graph,
            f"{int(missing.sum())} vertices of the splits have no label, the first {int(np.argmax(missing))}",
            "label them, or take them out of the splits",
        )
    bad = (graph.y < -1) | (graph.y >= graph.num_classes)
    if bad.any():
        vertex = int(np.argmax(bad))
        raise _error(
            graph,
            f"{int(bad.sum())} labels are out of range, the first {graph.y[vertex]} of vertex {vertex}, "
            f"but num_classes is {graph.num_classes}",
            f"classes count from 0 to {graph.num_classes - 1}; -1 stands for none",
        )


def _check_finite(graph: GraphData) -> None:
    x = graph.x
    step = max(1, _CHUNK_VALUES // x.shape[1])
    for start, stop in pairwise([*range(0, len(x), step), len(x)]):
        finite = np.isfinite(x[start:stop])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise _error(
                graph,
                f"feature {column} of vertex {start + row} is {x[start + row, column]}",
                "clean the features first",
            )
