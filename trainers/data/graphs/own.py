"""Users' own graphs: a function that returns a `GraphData`, or a dict of its fields with the dull ones left out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainers.data import own
from trainers.data.base import DataError
from trainers.data.graphs.base import GraphData
from trainers.data.graphs.edges import in_neighbours

_MASKS = ("train_mask", "val_mask", "test_mask")
_REQUIRED = ("x", "y", *_MASKS)
_KNOWN = (*GraphData._fields, "edge_index")


def load(target: str, kwargs: Mapping[str, Any]) -> GraphData:
    """Call `package.module:function` with keyword arguments and return the graph it made.

    Raises:
        DataError: when the function cannot be found, raises, or returns something else.
    """
    made = own.call(target, kwargs)
    if isinstance(made, GraphData):
        return made
    if isinstance(made, Mapping) and not {"train_x", "train_y"} & made.keys():
        return from_fields(made, name=target)
    what = f"a dict of {', '.join(map(str, made))}" if isinstance(made, Mapping) else type(made).__name__
    raise DataError(
        f"target {target!r} returned {what}, and this strategy trains on a graph",
        f"return a trainers.data.graphs.GraphData, or a dict with {', '.join(_REQUIRED)} and edge_index",
    )


def from_fields(fields: Mapping[str, Any], *, name: str) -> GraphData:
    """Return the graph that a dict describes.

    `x`, `y`, the three masks and either `edge_index` or `indptr` and `indices` are required. Edges in `edge_index` go
    from its first row to its second and are taken as they are: give both directions where both are meant.

    Args:
        name: the graph's name, unless the dict has one.

    Raises:
        DataError: when a field is missing, unknown, or not an array of its kind.

    Shapes: `edge_index [2, E]`; the others as in `GraphData`.
    """
    unknown = [key for key in fields if key not in _KNOWN]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), _KNOWN, n=1)
        hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(_KNOWN)}"
        raise DataError(f"graph {name}: unknown field {unknown[0]!r}", hint)
    given = {key: value for key, value in fields.items() if value is not None}
    name = str(given.get("name", name))
    missing = [key for key in _REQUIRED if key not in given]
    if missing:
        raise DataError(f"graph {name}: no {', '.join(missing)}", f"a dict needs {', '.join(_REQUIRED)}, and edges")
    if ("edge_index" in given) == bool({"indptr", "indices"} & given.keys()):
        raise DataError(
            f"graph {name}: expected either edge_index or indptr and indices",
            "edge_index is [2, E], sources first; indptr [N + 1] cuts indices [E] into each vertex's in-neighbours",
        )
    y = _array(name, "y", given["y"], "iu").astype(np.int64)
    notes = tuple(given.get("notes", ()))
    if "edge_index" in given:
        edges = _array(name, "edge_index", given["edge_index"], "iu")
        if edges.ndim != 2 or len(edges) != 2:
            raise DataError(f"graph {name}: edge_index has shape {edges.shape}", "expected [2, E], sources first")
        rows = in_neighbours(name, edges[0], edges[1], y.size, undirected=False)
        indptr, indices, notes = rows.indptr, rows.indices, (*notes, *rows.notes)
    else:
        pair = [_array(name, key, given.get(key), "iu").astype(np.int64) for key in ("indptr", "indices")]
        indptr, indices = pair
    classes = given.get("num_classes")
    return GraphData(
        name=name,
        x=_array(name, "x", given["x"], "iufb").astype(np.float32),
        y=y,
        indptr=indptr,
        indices=indices,
        **{key: _array(name, key, given[key], "b") for key in _MASKS},
        num_classes=int(y.max(initial=-1)) + 1 if classes is None else int(classes),
        class_names=tuple(map(str, given["class_names"])) if "class_names" in given else None,
        notes=notes,
    )


def _array(name: str, key: str, value: Any, kinds: str) -> np.ndarray:
    try:
        array = np.asarray(value.toarray() if hasattr(value, "toarray") else value)
    except (TypeError, ValueError) as error:
        raise DataError(f"graph {name}: {key} is no array: {error}", "give rows of equal shape") from error
    if array.ndim == 0 or array.dtype.kind not in kinds:
        words = {"b": "true or false", "iu": "whole numbers", "iufb": "numbers"}[kinds]
        raise DataError(
            f"graph {name}: {key} is {type(value).__name__} of {array.dtype}", f"expected an array of {words}"
        )
    return array
