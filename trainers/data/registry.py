"""From the `data` section of an experiment to a checked data set.

The names are those of the section; adding a data set is a module with a `load` and a line in `_BUILDERS`.
Partitioning is not here but in `strategies.partition`: the same data set serves any partition.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from strategies import seeds
from trainers.data import cifar, digits, emnist, idx, letters, own, planetoid, shakespeare, synthetic
from trainers.data.base import DataError, Dataset
from trainers.data.download import data_folder
from trainers.data.graphs.registry import GRAPH_ONLY
from trainers.data.validate import validate

Section = Mapping[str, Any]


def _idx(section: Section, seed: int) -> Dataset:
    return idx.load(section["name"], data_folder(section.get("folder")))


def _emnist(section: Section, seed: int) -> Dataset:
    return emnist.load(data_folder(section.get("folder")))


def _cifar(section: Section, seed: int) -> Dataset:
    folder = data_folder(section.get("folder"))
    return cifar.load(folder) if section["name"] == "cifar-10" else cifar.load_jpeg(folder)


def _letters(section: Section, seed: int) -> Dataset:
    return letters.load(seed=seed, **{key: value for key, value in section.items() if key in _LETTERS_KEYS})


def _planetoid(section: Section, seed: int) -> Dataset:
    return planetoid.load(section["name"], data_folder(section.get("folder")), section.get("normalize", "rows"))


def _shakespeare(section: Section, seed: int) -> Dataset:
    folder = data_folder(section.get("folder"))
    return shakespeare.load(folder, section.get("sequence_length", 80), section.get("stride"))


def _synthetic(section: Section, seed: int) -> Dataset:
    settings = {key: value for key, value in section.items() if key in _SYNTHETIC_KEYS}
    return synthetic.load(section.get("kind", "blobs"), seed=seed, **settings)


def _parquet(section: Section, seed: int) -> Dataset:
    from trainers.data import parquet  # its reader brings pandas along, half a second that no other data needs

    return parquet.load(**{key: value for key, value in section.items() if key in _PARQUET_KEYS})


_SYNTHETIC_KEYS = ("examples", "test_examples", "features", "classes", "noise")
_LETTERS_KEYS = ("examples", "test_examples", "size")
_PARQUET_KEYS = ("path", "features", "label", "client", "shape", "test_path", "test_fraction")
_BUILDERS: dict[str, Callable[[Section, int], Dataset]] = {
    "digits": lambda section, seed: digits.load(),
    "mnist": _idx,
    "fashion-mnist": _idx,
    "emnist-letters": _emnist,
    "cifar-10": _cifar,
    "cifar-10-jpeg": _cifar,
    "letters": _letters,
    "cora": _planetoid,
    "citeseer": _planetoid,
    "pubmed": _planetoid,
    "tiny-shakespeare": _shakespeare,
    "synthetic": _synthetic,
    "parquet": _parquet,
}
NAMES = tuple(_BUILDERS)


def load(section: Section, *, seed: int) -> Dataset:
    """Return the data set that the `data` section of an experiment names, checked and cut to its limit.

    Args:
        section: the section as a plain mapping; fields left out take the section's defaults.
        seed: the experiment's seed; only `letters`, `synthetic` and `limit` draw from it.

    Raises:
        DataError: when the data cannot be had or used.
    """
    if section.get("target"):
        dataset = own.load(section["target"], section.get("kwargs") or {})
    else:
        name = str(section.get("name"))
        if name in GRAPH_ONLY:
            raise DataError(f"{name} is a graph, and this strategy trains on rows", "strategy.kind=graph-pipeline")
        if name not in _BUILDERS:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"data sets are {', '.join(NAMES)}, or target: module:function"
            )
            raise DataError(f"unknown data set {name!r}", hint)
        dataset = _BUILDERS[name](section, seed)
    # Parquet values are checked while they are copied into the cache; reading them all again could take minutes.
    dataset = validate(dataset, check_values=section.get("name") != "parquet")
    limit = section.get("limit")
    return dataset if limit is None else take(dataset, limit, seed)


def take(dataset: Dataset, limit: int, seed: int) -> Dataset:
    """Keep this many training examples, drawn by the seed, in their old order.

    Raises:
        DataError: when there are fewer.
    """
    available = len(dataset.train_x)
    if limit > available:
        raise DataError(
            f"data.limit is {limit}, but {dataset.name} has {available} training examples",
            f"lower the limit to at most {available}, or leave it out",
        )
    rows = np.sort(seeds.generator(seed, "limit").permutation(available)[:limit])
    return dataset._replace(
        train_x=dataset.train_x[rows],
        train_y=dataset.train_y[rows],
        client_of=None if dataset.client_of is None else dataset.client_of[rows],
    )
