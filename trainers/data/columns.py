"""Columns of a table as arrays: features, labels and clients, checked batch by batch.

Each reader is handed one batch after another, refuses what cannot be trained on with the first bad row's place, and
remembers only what outlives a batch: how long a row is, which classes and clients there are.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainers.data.base import DataError

_LARGEST_LABEL = 1000
"""Labels may be this large whatever the number of rows; beyond it they are taken for identifiers."""


class Place(NamedTuple):
    """Where a batch comes from, so that a message can name a row: the file, and the batch's first row in it."""

    file: str
    first: int

    def row(self, index: int) -> str:
        """Name one row of the batch."""
        return f"row {self.first + index} of {self.file}"


def check_columns(path: str, schema: pa.Schema, wanted: Mapping[str, Sequence[str]]) -> None:
    """Refuse columns that a table lacks, or that are both feature and label.

    Args:
        wanted: the setting, such as `label`, and the columns it names.

    Raises:
        DataError: listing the columns that exist, and the nearest.
    """
    for setting, names in wanted.items():
        if setting == "features" and not names:
            raise DataError("data.features names no column", f"columns of {path}: {', '.join(schema.names)}")
        for name in names:
            if schema.names.count(name) == 1:
                continue
            if name in schema.names:
                raise DataError(f"{path} has several columns {name!r} (data.{setting})", "rename all but one")
            near = difflib.get_close_matches(name, schema.names, n=1)
            raise DataError(
                f"{path} has no column {name!r} (data.{setting}); it has {', '.join(schema.names)}",
                f"did you mean {near[0]}?" if near else f"set data.{setting} to one of them",
            )
    both = set(wanted.get("features", ())) & set(wanted.get("label", ()))
    if both:
        raise DataError(f"column {both.pop()!r} is both a feature and the label", "take it out of data.features")


class Features:
    """Reads one column of lists, or several columns of numbers, as rows of equal length.

    Attributes: `dtype` of the rows, uint8 for pixels, else float32 where that is exact and float64 where not;
    `num_features`, the length of a row, known after the first batch when lists vary in type.
    """

    def __init__(self, path: str, schema: pa.Schema, names: Sequence[str]) -> None:
        types = [_plain(schema.field(name).type) for name in names]
        self._names = names
        self._lists = _is_list(types[0])
        for name, kind in zip(names, types, strict=True):
            value = kind.value_type if self._lists and _is_list(kind) else kind
            if not _is_number(value) or (self._lists and len(names) > 1):
                raise DataError(
                    f"column {name!r} of {path} is {kind}, which cannot be a feature here",
                    "data.features is one column of lists of numbers, or several columns of numbers",
                )
        self.pixels = self._lists and types[0].value_type == pa.uint8()
        values = [kind.value_type if self._lists else kind for kind in types]
        exact = all(pa.types.is_boolean(value) or _fits_float32(value) for value in values)
        self.dtype = np.dtype(np.uint8 if self.pixels else np.float32 if exact else np.float64)
        self.num_features = 0 if self._lists else len(names)

    def read(self, batch: pa.RecordBatch, place: Place) -> np.ndarray:
        """Return the batch's rows.

        Raises:
            DataError: on a null, a value that is not finite, or a row of another length.

        Shapes: result `[rows of the batch, num_features]`.
        """
        columns = [storage(batch.column(name)) for name in self._names]
        for name, column in zip(self._names, columns, strict=True):
            refuse_nulls(name, column, place)
        rows = self._read_lists(columns[0], place) if self._lists else self._read_columns(columns)
        if self.dtype.kind == "f":
            finite = np.isfinite(rows)
            if not finite.all():
                row, column = np.argwhere(~finite)[0]
                name = self._names[0] if self._lists else self._names[column]
                raise DataError(
                    f"column {name!r} has {rows[row, column]} in {place.row(int(row))}", "fill in or drop such rows"
                )
        return rows

    def _read_columns(self, columns: Sequence[pa.Array]) -> np.ndarray:
        rows = np.empty((len(columns[0]), len(columns)), self.dtype)
        for index, column in enumerate(columns):
            rows[:, index] = _numbers(column)
        return rows

    def _read_lists(self, column: pa.Array, place: Place) -> np.ndarray:
        lengths = pc.list_value_length(column).to_numpy()
        if not self.num_features and len(lengths):
            self.num_features = int(lengths[0])
            if not self.num_features:
                raise DataError(f"column {self._names[0]!r} has an empty list in {place.row(0)}", "drop such rows")
        odd = np.flatnonzero(lengths != self.num_features)
        if len(odd):
            raise DataError(
                f"column {self._names[0]!r} has {lengths[odd[0]]} values in {place.row(int(odd[0]))}, "
                f"but {self.num_features} in the rows before",
                "every row needs as many values",
            )
        values = column.flatten()
        if values.null_count:
            first = int(np.argmax(pc.is_null(values).to_numpy(zero_copy_only=False))) // self.num_features
            raise DataError(f"column {self._names[0]!r} has a null within {place.row(first)}", "fill in such rows")
        return _numbers(values).astype(self.dtype, copy=False).reshape(len(column), self.num_features)


class Codes:
    """Numbers the different values of a column while they come in, and in sorted order at the end."""

    def __init__(self, path: str, schema: pa.Schema, name: str) -> None:
        kind = _plain(schema.field(name).type)
        if pa.types.is_nested(kind):
            raise DataError(f"column {name!r} of {path} is {kind}", "one plain value a row is needed")
        self._name = name
        self._known: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def read(self, batch: pa.RecordBatch, place: Place) -> np.ndarray:
        """Return provisional numbers of the batch's values, in order of appearance."""
        column = storage(batch.column(self._name))
        refuse_nulls(self._name, column, place)
        encoded = column.dictionary_encode()
        own = [self._known.setdefault(value, len(self._known)) for value in encoded.dictionary.to_pylist()]
        return np.array(own, np.int64)[encoded.indices.to_numpy()]

    def finish(self) -> tuple[np.ndarray, list[str]]:
        """Return the final number of every provisional one, and the values as text in their order."""
        ordered = sorted(self._known)
        final = np.empty(len(ordered), np.int64)
        for number, value in enumerate(ordered):
            final[self._known[value]] = number
        return final, [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in ordered]


class Labels:
    """Reads classes: whole numbers as they are, text as classes in sorted order.

    Args:
        optional: whether a null is no label, -1, rather than an error.
    """

    def __init__(self, path: str, schema: pa.Schema, name: str, *, optional: bool = False) -> None:
        kind = _plain(schema.field(name).type)
        text = is_text(kind)
        if not (text or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise DataError(
                f"column {name!r} of {path} is {kind}, which cannot be a label",
                "labels are whole numbers from 0, or text; cast the column when it is written",
            )
        self._path, self._name, self._optional = path, name, optional
        self._codes = Codes(path, schema, name) if text else None
        self._largest = -1

    def read(self, batch: pa.RecordBatch, place: Place) -> np.ndarray:
        """Return the batch's labels, provisional numbers where they are text."""
        column = storage(batch.column(self._name))
        if not self._optional:
            refuse_nulls(self._name, column, place)
        present = column.is_valid()
        if self._codes is not None:
            labels = np.full(len(batch), -1, np.int64)
            labels[present.to_numpy(zero_copy_only=False)] = self._codes.read(batch.filter(present), place)
            return labels
        values = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
        if len(values) and values.min() < 0:
            row = int(np.argmax(values < 0))
            raise DataError(
                f"column {self._name!r} has {values[row]} in {place.row(row)}",
                "classes count from 0; or write them as text, and each becomes a class",
            )
        self._largest = max(self._largest, int(values.max(initial=-1)))
        return np.where(present.to_numpy(zero_copy_only=False), values, -1)

    def num_known(self) -> int:
        """Return how many different texts were read so far; 0 for numbers."""
        return len(self._codes) if self._codes is not None else 0

    def finish(self, num_rows: int) -> tuple[np.ndarray | None, int, list[str]]:
        """Return the final number of every provisional one (None for numbers), the number of classes, and names.

        Raises:
            DataError: when numbers are so large that they must be identifiers.
        """
        if self._codes is not None:
            final, names = self._codes.finish()
            return final, len(names), names
        if self._largest >= max(num_rows, _LARGEST_LABEL):
            raise DataError(
                f"column {self._name!r} of {self._path} has the label {self._largest}, with {num_rows} rows",
                "classes count from 0 without large gaps; or write them as text, and each becomes a class",
            )
        return None, self._largest + 1, []


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type behind dictionaries and extension types."""
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is one of Arrow's types of text."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def storage(column: pa.Array) -> pa.Array:
    """Return a column's plain values, behind dictionaries and extension types."""
    if isinstance(column, pa.ExtensionArray):
        return storage(column.storage)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def _fits_float32(kind: pa.DataType) -> bool:
    return not pa.types.is_decimal(kind) and kind.bit_width <= (32 if pa.types.is_floating(kind) else 16)


def _numbers(column: pa.Array) -> np.ndarray:
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy(zero_copy_only=False)


def refuse_nulls(name: str, column: pa.Array, place: Place) -> None:
    """Refuse a column with nulls, naming the first one's row."""
    if column.null_count:
        first = int(np.argmax(pc.is_null(column).to_numpy(zero_copy_only=False)))
        raise DataError(
            f"column {name!r} has {column.null_count} nulls in this part of the table, the first in {place.row(first)}",
            "fill in or drop such rows",
        )
