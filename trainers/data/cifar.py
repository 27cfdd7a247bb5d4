"""CIFAR-10: 32 x 32 colour photographs in ten classes, from the authors' archive, or from a lossy copy of a part of it.

cifar-10         the binary version: records of a label and 3,072 bytes, red, green, blue, each row by row
cifar-10-jpeg    30,000 training and all test images as JPEG (quality 75), as arrays in two npz files; its pixels
                 differ slightly, so accuracies are not quite those of the original
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from trainers.data.base import CLASSIFICATION, DataError, Dataset
from trainers.data.download import SETTING, RemoteFile, ensure

# Address and md5 c32a1d4ab5d03f1284b67883e8d87530 as on the authors' page, cs.toronto.edu/~kriz/cifar.html; size and
# sha256 as in the checksums of tensorflow_datasets (url_infos of cifar10).
FILE = RemoteFile(
    "cifar10/cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
TIMEOUT_S = 1800.0
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SCALE = (0.4732, 0.2509)
"""Mean and deviation of all pixels of the training images, over the channels together; computed from the JPEG copy."""
JPEG_FILES = (
    ("cifar10/cifar10_train30k_jpeg.npz", "b6b547b5898d0a82766e2e6543514a5f2c391acd0bdcb9c49382ad0d724f8f51"),
    ("cifar10/cifar10_test10k_jpeg.npz", "2a081e4cc1f856c4498daa0d1eb2d61101f7f0040feefc6e32b977c47857ff17"),
)
"""Where the copies are looked for in the data folder, and the sha256 of those this was tested with."""
_SHAPE = (3, 32, 32)
_TRAIN = tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6))
_TEST = ("cifar-10-batches-bin/test_batch.bin",)
_EACH = 10_000  # records of a file
_AGAIN = "delete it to have it fetched again"


def load(folder: Path) -> Dataset:
    """Return the 50,000 training and 10,000 test images.

    Raises:
        DataError: when the archive cannot be had, or is damaged.

    Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images".
    """
    path = ensure(folder, FILE, timeout_s=TIMEOUT_S)
    try:
        with tarfile.open(path, "r:gz") as archive:
            parts = [_member(archive, name, path) for name in (*_TRAIN, *_TEST)]
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", _AGAIN) from error
    images, labels = zip(*parts, strict=True)
    train = np.concatenate(images[: len(_TRAIN)]), np.concatenate(labels[: len(_TRAIN)])
    return _dataset("cifar-10", train, (images[-1], labels[-1]))


def _member(archive: tarfile.TarFile, name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one file of the archive."""
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise DataError(f"{path} lacks {name}", _AGAIN)
    with member:
        return read_records(member, f"{name} in {path}")


def read_records(source: IO[bytes], name: str, number: int = _EACH) -> tuple[np.ndarray, np.ndarray]:
    """Return images `[n, 3, 32, 32]` and labels `[n]` of a file of records.

    Args:
        name: of the file, for messages. number: records that it must hold; no more is read.

    Raises:
        DataError: when it holds fewer or more, or a label above 9.
    """
    size = 1 + 3 * 32 * 32
    raw = source.read(number * size + 1)
    if len(raw) != number * size:
        found = "more" if len(raw) > number * size else str(len(raw))
        raise DataError(f"{name} holds {found} bytes, expected {number * size}", _AGAIN)
    records = np.frombuffer(raw, np.uint8).reshape(number, size)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{name} has label {labels.max()}, expected 0 to 9", _AGAIN)
    return np.ascontiguousarray(records[:, 1:]).reshape(number, *_SHAPE), labels


def load_jpeg(folder: Path) -> Dataset:
    """Return the images that are in the data folder as JPEG, decoded.

    Raises:
        DataError: when a file is missing or damaged, or Pillow, which decodes them, is not installed.
    """
    (train, test) = (_decoded(folder / path, sha256) for path, sha256 in JPEG_FILES)
    return _dataset("cifar-10-jpeg", train, test)


def _decoded(path: Path, sha256: str) -> tuple[np.ndarray, np.ndarray]:
    if not path.exists():
        raise DataError(
            f"{path} is missing, and this copy is not published anywhere to be fetched from",
            f"data.name=cifar-10 fetches the original; {SETTING}.\n"
            "  Keys of the npz: jpeg_header, jpeg_body uint8; offsets (n + 1,); labels uint8 (n,). Image i is\n"
            f"  jpeg_header + jpeg_body[offsets[i]:offsets[i+1]]. The copy this was tested with has sha256 {sha256}",
        )
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("cifar-10-jpeg needs Pillow to decode its images", "pip install pillow") from error
    replace = f"replace it; the sha256 expected is {sha256}"
    try:
        with np.load(path, allow_pickle=False) as archive:
            header, body = archive["jpeg_header"].tobytes(), archive["jpeg_body"].tobytes()
            offsets, labels = archive["offsets"].tolist(), archive["labels"].astype(np.int64)
        if len(offsets) != len(labels) + 1 or offsets[-1] > len(body) or not len(labels):
            raise DataError(f"{path} has {len(labels)} labels and {len(offsets)} offsets", replace)
        if not 0 <= labels.min() <= labels.max() < len(CLASS_NAMES):
            raise DataError(f"{path} has labels from {labels.min()} to {labels.max()}, expected 0 to 9", replace)
        images = np.empty((len(labels), *_SHAPE), np.uint8)
        for index in range(len(labels)):
            with Image.open(io.BytesIO(header + body[offsets[index] : offsets[index + 1]]), formats=("JPEG",)) as image:
                images[index] = np.asarray(image).transpose(2, 0, 1)
    except (OSError, EOFError, KeyError, ValueError, UnidentifiedImageError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}", replace) from error
    return images, labels


def _dataset(name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Dataset:
    return Dataset(
        name=name,
        task=CLASSIFICATION,
        train_x=train[0],
        train_y=train[1],
        test_x=test[0],
        test_y=test[1],
        num_classes=len(CLASS_NAMES),
        input_shape=_SHAPE,
        scale=SCALE,
        class_names=CLASS_NAMES,
    )
