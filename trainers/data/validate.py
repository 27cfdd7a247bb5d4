"""Checks that a data set is what it says, once, before anything is trained on it.

A label out of range or a NaN among a million features otherwise shows up as a crash or a diverging loss on a worker,
rounds later. What is left out: whether the data is any good.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from trainers.data.base import CLASSIFICATION, LANGUAGE_MODEL, DataError, Dataset

_CHUNK_VALUES = 1 << 22


def validate(dataset: Dataset, *, check_values: bool = True) -> Dataset:
    """Return the data set unchanged when its parts fit together.

    Args:
        check_values: also look for values that are not finite; False when whoever wrote the arrays did so.

    Raises:
        DataError: naming the first field that does not fit, and the first bad row.
    """
    if dataset.task not in (CLASSIFICATION, LANGUAGE_MODEL):
        raise _error(dataset, f"task is {dataset.task!r}", f"expected {CLASSIFICATION!r} or {LANGUAGE_MODEL!r}")
    if dataset.num_classes < 2:
        raise _error(dataset, f"num_classes is {dataset.num_classes}", "a model needs at least 2 classes")
    if not dataset.input_shape or any(size < 1 for size in dataset.input_shape):
        raise _error(dataset, f"input_shape is {dataset.input_shape}", "give the shape of one example, such as (20,)")
    for part, x, y in (("train", dataset.train_x, dataset.train_y), ("test", dataset.test_x, dataset.test_y)):
        _check_arrays(dataset, part, x, y)
        _check_range(dataset, f"{part}_y", y)
        if dataset.task == LANGUAGE_MODEL:
            _check_range(dataset, f"{part}_x", x)
        elif check_values:
            _check_finite(dataset, f"{part}_x", x)
    if dataset.scale is not None and not (all(map(math.isfinite, dataset.scale)) and dataset.scale[1] > 0):
        raise _error(dataset, f"scale is {dataset.scale}", "give (mean, std) with std above 0")
    _check_clients(dataset)
    return dataset


def _error(dataset: Dataset, message: str, hint: str) -> DataError:
    return DataError(f"data set {dataset.name}: {message}", hint)


def _check_arrays(dataset: Dataset, part: str, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) == 0:
        raise _error(dataset, f"{part}_x has no examples", "both training and test examples are needed")
    if len(x) != len(y):
        raise _error(dataset, f"{part}_x has {len(x)} rows but {part}_y {len(y)}", "give one label per example")
    if dataset.client_shapes is None and math.prod(x.shape[1:]) != math.prod(dataset.input_shape):
        raise _error(
            dataset,
            f"an example of {part}_x has shape {x.shape[1:]}, which does not fill input_shape {dataset.input_shape}",
            "input_shape is the shape of one example, without the number of examples",
        )
    tokens = dataset.task == LANGUAGE_MODEL
    if x.dtype.kind not in ("iu" if tokens else "iuf"):
        raise _error(dataset, f"{part}_x is {x.dtype}", f"expected {'integers' if tokens else 'numbers'}")
    if y.dtype.kind not in "iu":
        raise _error(dataset, f"{part}_y is {y.dtype}", "labels are whole numbers from 0 to num_classes - 1")
    if y.shape != (x.shape if tokens else (len(x),)):
        raise _error(
            dataset,
            f"{part}_y has shape {y.shape}, {part}_x {x.shape}",
            "tokens need a next token each: y of the shape of x" if tokens else "labels are one number per example",
        )


def _check_range(dataset: Dataset, field: str, values: np.ndarray) -> None:
    bad = (values < 0) | (values >= dataset.num_classes)
    if bad.any():
        where = np.argwhere(bad)[0]
        raise _error(
            dataset,
            f"{field} has {values[tuple(where)]} in row {where[0]}, but num_classes is {dataset.num_classes}",
            f"values count from 0 to {dataset.num_classes - 1}",
        )


def _check_finite(dataset: Dataset, field: str, x: np.ndarray) -> None:
    if x.dtype.kind != "f":
        return
    step = max(1, _CHUNK_VALUES // max(1, math.prod(x.shape[1:])))
    for start, stop in pairwise([*range(0, len(x), step), len(x)]):
        finite = np.isfinite(x[start:stop])
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0, 0])
            raise _error(dataset, f"{field} has a value that is not finite in row {row}", "clean the data first")


def _check_clients(dataset: Dataset) -> None:
    owners, names = dataset.client_of, dataset.client_names
    if owners is None:
        if dataset.client_shapes is not None:
            raise _error(dataset, "client_shapes is given without client_of", "give client_of, or leave both out")
        if names is not None:
            raise _error(dataset, "client_names is given without client_of", "give both or neither")
        return
    if names is None:
        raise _error(dataset, "client_of is given without client_names", "give both or neither")
    if owners.shape != (len(dataset.train_x),) or owners.dtype.kind not in "iu":
        raise _error(dataset, f"client_of is {owners.dtype} {owners.shape}", "give one integer per training example")
    if owners.min() < 0 or owners.max() >= len(names):
        raise _error(
            dataset, f"client_of runs from {owners.min()} to {owners.max()}", f"{len(names)} client_names are given"
        )
    if dataset.client_shapes is not None:
        _check_client_shapes(dataset, len(names))


def _check_client_shapes(dataset: Dataset, num_clients: int) -> None:
    shapes = dataset.client_shapes or ()
    if dataset.task != CLASSIFICATION or dataset.train_x.ndim != 2 or dataset.test_x.ndim != 2:
        raise _error(
            dataset, f"client_shapes is given with train_x {dataset.train_x.shape}", "give flat rows [n, width]"
        )
    if len(shapes) != num_clients:
        raise _error(dataset, f"{len(shapes)} client_shapes are given for {num_clients} clients", "give one a client")
    width = dataset.train_x.shape[1]
    for client, shape in enumerate(shapes):
        if not shape or min(shape) < 1 or math.prod(shape) > width:
            raise _error(
                dataset,
                f"client {client} has inputs of shape {shape}, but rows hold {width} values",
                "a shape's sizes are above 0, and their product at most the length of a row",
            )
    if dataset.input_shape not in shapes:
        raise _error(dataset, f"input_shape is {dataset.input_shape}, which no client has", f"give {shapes[0]}")
