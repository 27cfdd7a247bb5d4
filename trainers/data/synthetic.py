"""Data made up from a seed: for tests, for scaling studies, and for trying things out without files.

Every kind draws the problem, the training examples and the test examples from streams of their own, so that asking for
more training examples changes neither the problem nor the test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from strategies import seeds
from trainers.data.base import CLASSIFICATION, Dataset

Sampler = Callable[[int, np.random.Generator], tuple[np.ndarray, np.ndarray]]

_CENTER_RADIUS = 2.5
_MAX_SHIFT = 2
_PIXEL_NOISE = 0.2


def load(
    kind: str,
    *,
    seed: int,
    examples: int = 2000,
    test_examples: int = 500,
    features: int = 20,
    classes: int = 5,
    noise: float = 1.0,
) -> Dataset:
    """Return a synthetic classification problem, a pure function of the arguments.

    Args:
        kind: `blobs`, Gaussian clouds about one centre a class; `linear`, labels drawn from a random softmax
            regression; `images`, one smooth random pattern a class, shifted and with pixel noise.
        features: features of an example; for `images` the side of the square in pixels.
        noise: 0 makes the classes separable (blobs: points; linear: by hyperplanes; images: shifts only).
    """
    problem = {"blobs": _blobs, "linear": _linear, "images": _images}[kind]
    sample = problem(features, classes, noise, seeds.generator(seed, "synthetic/problem"))
    train_x, train_y = sample(examples, seeds.generator(seed, "synthetic/train"))
    test_x, test_y = sample(test_examples, seeds.generator(seed, "synthetic/test"))
    images = kind == "images"
    return Dataset(
        name=f"synthetic-{kind}",
        task=CLASSIFICATION,
        train_x=train_x,
        train_y=train_y,
        test_x=test_x,
        test_y=test_y,
        num_classes=classes,
        input_shape=(1, features, features) if images else (features,),
        scale=(0.5, 0.25) if images else None,
    )


def _blobs(features: int, classes: int, noise: float, rng: np.random.Generator) -> Sampler:
    """Gaussian clouds: at noise 1 neighbouring classes overlap a little."""
    centers = rng.normal(size=(classes, features)) * (_CENTER_RADIUS / np.sqrt(features))

    def sample(num_examples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(classes, size=num_examples)
        x = centers[y] + noise * rng.normal(size=(num_examples, features))
        return x.astype(np.float32), y

    return sample


def _linear(features: int, classes: int, noise: float, rng: np.random.Generator) -> Sampler:
    """Labels `argmax(W x + noise * Gumbel)`, that is, drawn from `softmax(W x / noise)`."""
    weights = rng.normal(size=(features, classes))

    def sample(num_examples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(num_examples, features))
        y = np.argmax(x @ weights + noise * rng.gumbel(size=(num_examples, classes)), axis=1)
        return x.astype(np.float32), y

    return sample


def _images(side: int, classes: int, noise: float, rng: np.random.Generator) -> Sampler:
    """Patterns of low spatial frequency, moved by up to two pixels (round the edge), with Gaussian pixel noise."""
    frequency = rng.integers(1, 4, size=(classes, 3, 2))
    phase = rng.uniform(0, 2 * np.pi, size=(classes, 3))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")) / side
    angle = 2 * np.pi * np.einsum("ckd,dhw->ckhw", frequency, grid) + phase[:, :, None, None]
    patterns = 0.5 + np.sin(angle).sum(axis=1) / 6

    def sample(num_examples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(classes, size=num_examples)
        shift = rng.integers(-_MAX_SHIFT, _MAX_SHIFT + 1, size=(num_examples, 2))
        rows = (np.arange(side)[None, :] + shift[:, :1]) % side
        columns = (np.arange(side)[None, :] + shift[:, 1:]) % side
        x = patterns[y[:, None, None], rows[:, :, None], columns[:, None, :]]
        x = x + _PIXEL_NOISE * noise * rng.normal(size=x.shape)
        return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8), y

    return sample
