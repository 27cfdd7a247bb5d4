"""Users' tables: Parquet from a local folder or an object store, streamed once into memory-mapped arrays.

The first load reads the columns that are named, batch by batch, and writes plain `.npy` files into the cache; later
loads map those files, so a table larger than memory can be trained on, and worker processes of one machine share
its pages. The cache is keyed by what was read (files, sizes, times of change, columns), never by the seed. Reading
columns as arrays is in `columns.py`. What is left out: nested tables, images stored as files, and writing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from strategies import seeds
from trainers.data.base import CLASSIFICATION, DataError, Dataset
from trainers.data.columns import Codes, Features, Labels, check_columns
from trainers.data.download import cache_folder
from trainers.data.tables import Source, batches, find, num_rows, require_same_types

FORMAT = 1


def load(
    path: str,
    features: str | Sequence[str],
    label: str,
    client: str | None = None,
    shape: Sequence[int] | None = None,
    test_path: str | None = None,
    test_fraction: float = 0.2,
) -> Dataset:
    """Return a table's rows as a classification data set whose arrays are mapped from the cache.

    Without `test_path`, a fixed random fraction of the rows is held out: it depends on the number of rows alone, so
    runs with different seeds share their test set. Label strings become classes in sorted order; label numbers are
    classes as they are. One column of uint8 lists is taken for pixels and divided by 255.

    Args:
        path: a file, a folder, or an object-store address such as `s3://bucket/train/`.
        features: one column of lists of equal length, or several columns of numbers.
        client: column that names each row's client.
        shape: shape of one example, such as `[1, 28, 28]`; two numbers are an image without a channel.

    Raises:
        DataError: when files are missing or damaged, or a column is missing or unfit, naming the first bad row.
    """
    names = [features] if isinstance(features, str) else list(features)
    sources = [find(path)] + ([find(test_path)] if test_path else [])
    for index, source in enumerate(sources):
        wanted = {"features": names, "label": [label], "client": [client] if client and index == 0 else []}
        check_columns(source.path, source.table.schema, wanted)
    key = json.dumps([FORMAT, names, label, client, test_fraction, [source.stamps for source in sources]])
    folder = cache_folder() / "parquet" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not folder.exists():
        _convert(folder, sources, names, label, client, test_fraction)
    try:
        facts = json.loads((folder / "facts.json").read_text())
        arrays = {name: _mapped(folder / f"{name}.npy") for name in ("train_x", "train_y", "test_x", "test_y")}
        client_of = _mapped(folder / "client_of.npy") if client else None
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"the cached copy of {sources[0].path} is damaged: {error}", f"delete {folder}") from error
    return Dataset(
        name=sources[0].path,
        task=CLASSIFICATION,
        **arrays,
        num_classes=facts["num_classes"],
        input_shape=_shape(sources[0].path, shape, facts["num_features"]),
        scale=(0.0, 1.0) if facts["pixels"] else None,
        client_of=client_of,
        client_names=tuple(facts["client_names"]) if client else None,
        class_names=tuple(facts["class_names"]) if facts["class_names"] else None,
    )


def _shape(path: str, shape: Sequence[int] | None, num_features: int) -> tuple[int, ...]:
    if shape is None:
        return (num_features,)
    if int(np.prod(shape)) != num_features:
        raise DataError(
            f"data.shape {list(shape)} has {int(np.prod(shape))} values, but a row of {path} has {num_features}",
            "give the shape of one example, such as [1, 28, 28] for 784 values",
        )
    return (1, *shape) if len(shape) == 2 else tuple(shape)


def _mapped(path: Path) -> np.ndarray:
    # A plain array over the mapped pages: Ray ships np.memmap, a subclass, by copying it into the message.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _convert(
    folder: Path, sources: Sequence[Source], names: Sequence[str], label: str, client: str | None, test_fraction: float
) -> None:
    """Write the arrays of a table into a cache folder that appears whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise DataError(
            f"the cache folder {folder.parent} cannot be written: {error.strerror}",
            "set ORCHESTRATOR_CACHE to a folder that can",
        ) from error
    try:
        _write(partial, sources, names, label, client, test_fraction)
        if not folder.exists():
            os.replace(partial, folder)
    except OSError as error:
        if not folder.exists():  # else another process was faster, and wrote the same
            raise DataError(
                f"the cache folder {folder.parent} cannot be written: {error.strerror}",
                "set ORCHESTRATOR_CACHE to a folder with enough space",
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(
    folder: Path, sources: Sequence[Source], names: Sequence[str], label: str, client: str | None, test_fraction: float
) -> None:
    main = sources[0]
    counts = [num_rows(source) for source in sources]
    held_out = _held_out(main.path, counts[0], test_fraction) if len(sources) == 1 else np.zeros(counts[0], bool)
    num_test = int(held_out.sum()) if len(sources) == 1 else counts[1]
    features = Features(main.path, main.table.schema, names)
    labels = Labels(main.path, main.table.schema, label)
    clients = Codes(main.path, main.table.schema, client) if client else None
    train_y, test_y, owners = [], [], []
    with (
        _Rows(folder / "train_x.npy", counts[0] - int(held_out.sum()), features) as train_x,
        _Rows(folder / "test_x.npy", num_test, features) as test_x,
    ):
        done = 0
        for batch, place in batches(main, [*names, label, *([client] if client else [])]):
            test = held_out[done : done + len(batch)]
            done += len(batch)
            x, y = features.read(batch, place), labels.read(batch, place)
            train_x.append(x[~test])
            test_x.append(x[test])
            train_y.append(y[~test])
            test_y.append(y[test])
            if clients is not None:
                owners.append(clients.read(batch, place)[~test])
        num_known = labels.num_known()
        for source in sources[1:]:
            require_same_types(source, main, [*names, label])
            for batch, place in batches(source, [*names, label]):
                test_x.append(features.read(batch, place))
                test_y.append(labels.read(batch, place))
    final, num_classes, class_names = labels.finish(sum(counts))
    if labels.num_known() > num_known:
        new = (
            [class_names[final[code]] for code in range(num_known, labels.num_known())][:5] if final is not None else []
        )
        raise DataError(
            f"{sources[1].path} has labels that {main.path} lacks: {', '.join(new)}",
            "drop those rows, or train on them",
        )
    for name, parts in (("train_y", train_y), ("test_y", test_y)):
        codes = np.concatenate(parts)
        np.save(folder / f"{name}.npy", codes if final is None else final[codes])
    client_names: list[str] = []
    if clients is not None:
        order, client_names = clients.finish()
        np.save(folder / "client_of.npy", order[np.concatenate(owners)].astype(np.int32))
    facts = {
        "num_features": features.num_features,
        "pixels": features.pixels,
        "num_classes": num_classes,
        "class_names": class_names,
        "client_names": client_names,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


def _held_out(path: str, num_rows: int, fraction: float) -> np.ndarray:
    if num_rows < 2:
        raise DataError(
            f"{path} has {num_rows} row", "some rows are for training and some for testing; or set test_path"
        )
    num_test = min(max(round(num_rows * fraction), 1), num_rows - 1)
    held_out = np.zeros(num_rows, bool)
    held_out[seeds.generator(0, "parquet/test").permutation(num_rows)[:num_test]] = True
    return held_out


class _Rows:
    """Appends rows to an `.npy` file whose length is known beforehand and whose width with the first rows.

    Written in sequence rather than mapped, so that a full disk is an error and not a bus error.
    """

    def __init__(self, path: Path, num_rows: int, features: Features) -> None:
        self.num_rows, self._features = num_rows, features
        self._file = path.open("wb")
        self._begun = False

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: np.ndarray) -> None:
        """Add rows at the end."""
        if not self._begun:
            shape = (self.num_rows, self._features.num_features)
            header = {
                "descr": np.lib.format.dtype_to_descr(self._features.dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(self._file, header)
            self._begun = True
        self._file.write(np.ascontiguousarray(rows).data)
