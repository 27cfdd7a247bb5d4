"""Users' own data: a function that returns a `Dataset`, or a dict of its fields with the dull ones left out."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from trainers.data.base import CLASSIFICATION, LANGUAGE_MODEL, DataError, Dataset
from trainers.targets import TargetError, resolve

_ARRAYS = ("train_x", "train_y", "test_x", "test_y")


def load(target: str, kwargs: Mapping[str, Any]) -> Dataset:
    """Call `package.module:function` with keyword arguments and return the data set it made.

    Raises:
        DataError: when the function cannot be found, raises, or returns something else.
    """
    made = call(target, kwargs)
    if isinstance(made, Dataset):
        return made._replace(**{key: _array(target, key, getattr(made, key)) for key in _ARRAYS})
    if hasattr(made, "indptr") or (isinstance(made, Mapping) and {"indptr", "edge_index"} & made.keys()):
        raise DataError(
            f"target {target!r} returned a graph, and this strategy trains on rows",
            f"strategy.kind=graph-pipeline, or return a dict with {', '.join(_ARRAYS)}",
        )
    if isinstance(made, Mapping):
        return from_fields(made, name=target)
    raise DataError(
        f"target {target!r} returned {type(made).__name__}",
        f"return a trainers.data.Dataset, or a dict with {', '.join(_ARRAYS)}",
    )


def call(target: str, kwargs: Mapping[str, Any]) -> Any:
    """Return what a user's function returns.

    Raises:
        DataError: when it cannot be found, or raises.
    """
    try:
        function = resolve(target)
    except TargetError as error:
        raise DataError(error.message, error.hint) from error
    try:
        return function(**kwargs)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"target {target!r} raised {type(error).__name__}: {error}",
            f"it was called with {dict(kwargs)}; correct the function or data.kwargs",
        ) from error


def from_fields(fields: Mapping[str, Any], *, name: str) -> Dataset:
    """Return the data set that a dict describes.

    The four arrays are required. What is left out is read off them: one class more than the largest label; the shape
    of a row, with a channel for images `[n, H, W]`, or the first client's where clients differ in it; and `x / 255` for
    uint8 images. `client_of` may hold names, which are then numbered in sorted order.

    Args:
        name: the data set's name, unless the dict has one.

    Raises:
        DataError: when a field is missing, unknown, or not an array.
    """
    unknown = [key for key in fields if key not in Dataset._fields]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), Dataset._fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"fields are {', '.join(Dataset._fields)}"
        raise DataError(f"data set {name}: unknown field {unknown[0]!r}", hint)
    missing = [key for key in _ARRAYS if fields.get(key) is None]
    if missing:
        raise DataError(f"data set {name}: no {', '.join(missing)}", f"a dict needs {', '.join(_ARRAYS)}")
    given = {**fields}
    for key in _ARRAYS:
        given[key] = _array(name, key, fields[key])
    task = given.setdefault("task", CLASSIFICATION)
    train_x, train_y, test_y = given["train_x"], given["train_y"], given["test_y"]
    images = task != LANGUAGE_MODEL and train_x.dtype == np.uint8 and train_x.ndim in (3, 4)
    if given.get("num_classes") is None:
        parts = [y for y in (train_y, test_y, *((train_x,) if task == LANGUAGE_MODEL else ())) if y.size]
        if any(part.dtype.kind not in "iu" for part in parts):
            raise DataError(f"data set {name}: labels are {train_y.dtype}", "labels are whole numbers from 0")
        given["num_classes"] = 1 + max((int(part.max()) for part in parts), default=0)
    if given.get("client_shapes") is not None:
        given["client_shapes"] = tuple(tuple(map(int, shape)) for shape in given["client_shapes"])
    if given.get("input_shape") is None and given.get("client_shapes"):
        given["input_shape"] = given["client_shapes"][0]
    if given.get("input_shape") is None:
        row = train_x.shape[1:]
        given["input_shape"] = (1, *row) if task != LANGUAGE_MODEL and len(row) == 2 else row or (1,)
    if "scale" not in given and images:
        given["scale"] = (0.0, 1.0)
    if task != LANGUAGE_MODEL:
        for key in ("train_y", "test_y"):
            if given[key].dtype.kind in "iu":
                given[key] = given[key].astype(np.int64)
    given.update(_clients(name, given.get("client_of"), given.get("client_names")))
    for key in ("input_shape", "scale", "class_names"):
        given[key] = None if given.get(key) is None else tuple(given[key])
    return Dataset(**{"name": name, **given})


def _array(name: str, key: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"data set {name}: {key} is no array: {error}", "give rows of equal shape") from error
    if array.ndim == 0 or array.dtype.kind not in "iufb":
        raise DataError(
            f"data set {name}: {key} is {type(value).__name__} of {array.dtype}",
            "give an array of numbers, one row each",
        )
    return array.astype(np.int8) if array.dtype.kind == "b" else array


def _clients(name: str, owners: Any, names: Any) -> dict[str, Any]:
    if owners is None:
        return {"client_of": None, "client_names": None if names is None else tuple(names)}
    owners = np.asarray(owners)
    if names is None:
        if owners.dtype.kind not in "iuUS":
            raise DataError(
                f"data set {name}: client_of is {owners.dtype}", "give a number or a name per training example"
            )
        values, owners = np.unique(owners, return_inverse=True)
        names = [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    return {"client_of": owners.astype(np.int32), "client_names": tuple(map(str, names))}
