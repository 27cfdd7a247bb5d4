"""Users' graphs as two Parquet tables: edges, and vertices with features, labels and a split.

Vertices are numbered in the order of the table of vertices; edges name them by their ids, whole numbers or text. Files,
folders and object stores are found and read as tables of rows are (`trainers.data.tables`, `trainers.data.columns`).
What is left out: weights and kinds of edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainers.data.base import DataError
from trainers.data.columns import Features, Labels, Place, check_columns, is_text, refuse_nulls, storage
from trainers.data.graphs.base import GraphData, normalize_rows
from trainers.data.graphs.edges import in_neighbours
from trainers.data.graphs.splits import draw
from trainers.data.tables import Source, batches, find, num_rows

_SPLITS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "": 3, "none": 3}


class _Vertices(NamedTuple):
    ids: pa.Array
    x: np.ndarray
    y: np.ndarray
    parts: np.ndarray | None
    num_classes: int
    class_names: tuple[str, ...] | None


def load(
    edges: str,
    vertices: str,
    *,
    seed: int,
    src: str = "src",
    dst: str = "dst",
    id: str = "id",
    features: str | Sequence[str] = "features",
    label: str = "label",
    split: str = "split",
    train_fraction: float | None = None,
    val_fraction: float | None = None,
    undirected: bool = True,
    duplicates: Literal["refuse", "drop"] = "refuse",
    normalize: Literal["rows", "none"] = "none",
) -> GraphData:
    """Return the graph of two tables.

    Args:
        edges: a file, a folder, or an object-store address, with a row an edge from `src` to `dst`.
        vertices: likewise, with a row a vertex; a null label is none, for vertices that are in no split.
        features: one column of lists of equal length, or several columns of numbers.
        split: column of `train`, `val` or `test`, in any case; nulls are in no split.
        train_fraction, val_fraction: instead of that column, parts of the labelled vertices drawn by the seed.
        undirected: add the opposite of every edge.
        normalize: divide each row of features by its sum, or take them as they are.

    Raises:
        DataError: when files are missing or damaged, a column is missing or unfit, or the graph is bad, naming the
            first bad row.
    """
    found, names = find(vertices, "data.vertices"), [features] if isinstance(features, str) else list(features)
    drawn = train_fraction is not None and val_fraction is not None
    wanted = {"features": names, "label": [label], "id": [id]}
    _check_split(found, split, drawn)
    check_columns(found.path, found.table.schema, wanted if drawn else {**wanted, "split": [split]})
    made = _read_vertices(found, names, label, id, None if drawn else split)
    sources, targets = _read_edges(find(edges, "data.edges"), src, dst, made.ids, found.path)
    rows = in_neighbours(
        found.path,
        sources,
        targets,
        len(made.y),
        undirected=undirected,
        duplicates=duplicates,
        called=lambda vertex: repr(made.ids[vertex].as_py()),
    )
    if made.parts is None:
        masks = draw(found.path, made.y >= 0, train_fraction or 0.0, val_fraction or 0.0, seed)
    else:
        masks = (made.parts == 0, made.parts == 1, made.parts == 2)
    x = normalize_rows(made.x) if normalize == "rows" else made.x
    return GraphData(
        found.path, x, made.y, rows.indptr, rows.indices, *masks, made.num_classes, made.class_names, rows.notes
    )


def _check_split(found: Source, split: str, drawn: bool) -> None:
    has = split in found.table.schema.names
    if drawn and has:
        raise DataError(
            f"{found.path} has a column {split!r}, and data.train_fraction and data.val_fraction are given",
            "leave the fractions out to use the column, or set data.split to a name the table lacks",
        )
    if not drawn and not has:
        raise DataError(
            f"{found.path} has no column {split!r} (data.split); it has {', '.join(found.table.schema.names)}",
            "set data.split, or data.train_fraction=0.6 and data.val_fraction=0.2 to draw one by the seed",
        )


def _read_vertices(found: Source, names: list[str], label: str, id: str, split: str | None) -> _Vertices:
    count, schema = num_rows(found, "give a row a vertex"), found.table.schema
    features, labels = Features(found.path, schema, names), Labels(found.path, schema, label, optional=True)
    x, y, parts, ids = np.empty((0, 0), np.float32), np.empty(count, np.int64), np.empty(count, np.int8), []
    done = 0
    for batch, place in batches(found, [*names, label, id, *([split] if split else [])]):
        rows, here = features.read(batch, place), slice(done, done + len(batch))
        if done == 0:
            x = np.empty((count, rows.shape[1]), np.float32)
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite when the graph is checked
            x[here] = rows
        y[here] = labels.read(batch, place)
        ids.append(_ids(batch, id, place))
        if split:
            parts[here] = _parts(batch, split, place)
        done += len(batch)
    final, num_classes, class_names = labels.finish(count)
    if final is not None:
        y = np.append(final, -1)[y]
    keys = pa.chunked_array(ids).combine_chunks()
    _refuse_repeated(keys, found.path, id)
    return _Vertices(keys, x, y, parts if split else None, num_classes, tuple(class_names) or None)


def _read_edges(found: Source, src: str, dst: str, ids: pa.Array, vertices: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of every edge's vertices.

    Raises:
        DataError: on edges at ids that no vertex has: how many, and the first.
    """
    check_columns(found.path, found.table.schema, {"src": [src], "dst": [dst]})
    num_rows(found, "give a row an edge")
    read: tuple[list[pa.Array], list[pa.Array]] = ([], [])
    places: list[Place] = []
    for batch, place in batches(found, [src, dst]):
        places.append(place)
        for column, parts in zip((src, dst), read, strict=True):
            parts.append(_ids(batch, column, place))
    ends = []
    for column, parts in zip((src, dst), read, strict=True):
        values = pa.chunked_array(parts).combine_chunks()
        if values.type != ids.type:
            raise DataError(
                f"column {column!r} of {found.path} is {values.type}, but the ids of {vertices} are {ids.type}",
                "write both as whole numbers, or both as text",
            )
        ends.append(pc.index_in(values, value_set=ids))
    dangling = pc.or_(pc.is_null(ends[0]), pc.is_null(ends[1]))
    num_dangling = pc.sum(dangling).as_py()
    if num_dangling:
        row = int(np.argmax(dangling.to_numpy(zero_copy_only=False)))
        side = 0 if ends[0].slice(row, 1).null_count else 1
        value = pa.chunked_array(read[side])[row].as_py()
        raise DataError(
            f"{num_dangling:,} of {len(dangling):,} edges of {found.path} are at ids that {vertices} does not have, "
            f"the first {value!r} in column {(src, dst)[side]!r} of {_row(places, read[side], row)}",
            "add those vertices, or remove such edges",
        )
    return ends[0].to_numpy(), ends[1].to_numpy()


def _row(places: list[Place], parts: list[pa.Array], row: int) -> str:
    for place, part in zip(places, parts, strict=True):
        if row < len(part):
            return place.row(row)
        row -= len(part)
    raise IndexError(row)


def _ids(batch: pa.RecordBatch, name: str, place: Place) -> pa.Array:
    """Return a column of ids as int64 or text."""
    column = storage(batch.column(name))
    refuse_nulls(name, column, place)
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"column {name!r} has an id beyond 64 bits near {place.row(0)}", "write text") from error
    if is_text(column.type):
        return column.cast(pa.large_string())
    raise DataError(
        f"column {name!r} of {place.file} is {column.type}, which cannot be an id", "ids are whole numbers or text"
    )


def _parts(batch: pa.RecordBatch, name: str, place: Place) -> np.ndarray:
    column = storage(batch.column(name))
    if not (is_text(column.type) or pa.types.is_null(column.type)):
        raise DataError(f"column {name!r} of {place.file} is {column.type}", "a split is train, val or test, as text")
    words = [(word or "").strip().lower() for word in column.to_pylist()]
    odd = next((row for row, word in enumerate(words) if word not in _SPLITS), None)
    if odd is not None:
        raise DataError(
            f"column {name!r} has {column[odd].as_py()!r} in {place.row(odd)}",
            "a split is train, val or test; a null is none of them",
        )
    return np.array([_SPLITS[word] for word in words], np.int8)


def _refuse_repeated(ids: pa.Array, path: str, name: str) -> None:
    num_repeated = len(ids) - pc.count_distinct(ids).as_py()
    if num_repeated:
        counts = pc.value_counts(ids)
        first = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise DataError(
            f"column {name!r} of {path} repeats {num_repeated:,} ids, the first {first!r}", "give a row a vertex"
        )
