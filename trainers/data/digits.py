"""The digits that come with scikit-learn: small real images that need no download, for the quickstart and tests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from trainers.data.base import CLASSIFICATION, DataError, Dataset

TEST_FRACTION = 0.2
_MEAN, _STD = 0.3053, 0.3760


def standardise(ink: np.ndarray) -> np.ndarray:
    """Bring ink, 0 to 1, to mean 0 and deviation 1, as they are in the digits."""
    return ((ink - _MEAN) / _STD).astype(np.float32)


def file() -> Path:
    """Find the file that `load_digits` reads; importing scikit-learn would take longer than all else of a short run."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError("digits come with scikit-learn, which is not installed", "pip install scikit-learn")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"


def load() -> Dataset:
    """Return 1,797 grey 8 x 8 images of digits, a fifth of each class held out for testing.

    The split is fixed: it does not depend on the experiment's seed, so runs with different seeds compare. Pixels,
    16 levels of grey, are brought to mean 0 and deviation 1.

    Source: Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI; `sklearn.datasets.load_digits`.
    """
    table = np.loadtxt(file(), delimiter=",")
    images = standardise(table[:, :-1].reshape(-1, 8, 8) / 16)
    labels = table[:, -1].astype(np.int64)
    is_test = np.zeros(len(labels), bool)
    rng = np.random.default_rng(0)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        is_test[rows[: round(TEST_FRACTION * len(rows))]] = True
    return Dataset(
        name="digits",
        task=CLASSIFICATION,
        train_x=images[~is_test],
        train_y=labels[~is_test],
        test_x=images[is_test],
        test_y=labels[is_test],
        num_classes=10,
        input_shape=(1, 8, 8),
        class_names=tuple(str(digit) for digit in range(10)),
    )
