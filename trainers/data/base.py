"""What a data set is once loaded: plain numpy arrays and the few facts that models and partitions need.

Arrays rather than loaders, because arrays travel through Ray's object store without copying and because
which examples a client sees is decided elsewhere. On workers the arrays are read-only; `to_tensor` copies each batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.errors import HintedError

CLASSIFICATION = "classification"
LANGUAGE_MODEL = "language-model"


class DataError(HintedError):
    """Data cannot be had or used."""


class Dataset(NamedTuple):
    """A data set in memory, or mapped into it.

    Args:
        name: how it is called in messages and reports.
        task: `"classification"` or `"language-model"`.
        train_x: uint8 or float images, float features, or integer tokens.
        train_y: classes, or for a language model the next tokens.
        num_classes: number of classes; for a language model the size of the vocabulary.
        input_shape: shape of one example as a model sees it, such as `(1, 28, 28)`, `(20,)` or, for tokens, `(80,)`.
        scale: `(mean, std)` on [0, 1]: uint8 x becomes `(x / 255 - mean) / std`. None: x is used as it is.
        client_of: natural client of each training example, when the data has clients of its own.
        client_names: names of those clients, by number.
        class_names: names of the classes, by number, for reports.
        client_shapes: shape of one example of each natural client, where clients differ in it. Rows are then flat and
            as long as the largest; a client's values come first in its rows. Such data has no shared test set: the
            test arrays are judged by nobody. `input_shape` is one of the shapes.

    Shapes: `train_x [n, ...]`, `train_y [n]` or for tokens `[n, T]`, likewise the test arrays; `client_of [n]`.
    """

    name: str
    task: str
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int
    input_shape: tuple[int, ...]
    scale: tuple[float, float] | None = None
    client_of: np.ndarray | None = None
    client_names: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    client_shapes: tuple[tuple[int, ...], ...] | None = None

    @property
    def num_bytes(self) -> int:
        """Of all examples and targets."""
        return sum(array.nbytes for array in (self.train_x, self.train_y, self.test_x, self.test_y))


class Inputs(Protocol):
    """The part of a data set that turning its examples into tensors needs."""

    @property
    def task(self) -> str: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def scale(self) -> tuple[float, float] | None: ...
    @property
    def client_shapes(self) -> tuple[tuple[int, ...], ...] | None: ...


_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}


def to_tensor(x: np.ndarray, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Return a batch of examples as a model takes them, in memory of its own.

    Args:
        x: rows of `train_x` or `test_x`; may be read-only.
        inputs: the data set, or anything with its `task`, `input_shape` and `scale`.
        dtype: the model's floating-point type. Tokens become int64 whatever it is.

    Shapes: result `[len(x), *input_shape]`.
    """
    shape = (len(x), *inputs.input_shape)
    if inputs.client_shapes is not None:
        x = x[:, : math.prod(inputs.input_shape)]
    if inputs.task == LANGUAGE_MODEL:
        return torch.from_numpy(x.astype(np.int64)).reshape(shape)
    values = x.astype(_FLOATS.get(dtype, np.float32))
    if inputs.scale is not None and x.dtype == np.uint8:
        mean, std = inputs.scale
        values *= 1 / (255 * std)
        values -= mean / std
    return torch.from_numpy(values).reshape(shape).to(dtype)


def to_labels(y: np.ndarray) -> Tensor:
    """Return a batch of classes or next tokens as int64, in memory of its own; `y` may be read-only."""
    return torch.from_numpy(y.astype(np.int64))


def partition_labels(dataset: Dataset) -> np.ndarray:
    """Return one class per training example, for partitions that sort or skew by class.

    Raises:
        ValueError: when examples have no single class, as sequences of text have not.
    """
    if dataset.task == LANGUAGE_MODEL:
        raise ValueError(f"{dataset.name} has no class per example; use a partition of kind: iid or column")
    return dataset.train_y
