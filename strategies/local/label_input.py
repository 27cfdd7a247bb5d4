"""Labels written into the input, as forward-forward rules read them: true, wrong, neutral, and every one in turn.

The first `num_classes` numbers of an example become the label, one-hot, at the height of the example's largest
magnitude; the pixels that stood there are lost. Left out: labels beside the input, which need a wider first layer.

Source: Hinton 2022, arXiv:2212.13345, section 3.3 (the first ten pixels of MNIST); Momeni et al. 2023,
arXiv:2304.11042, whose programs write max|x|. Deviation: the height is each example's own max|x|, where the programs
take the batch's, so that what is said of an example does not depend on its batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from strategies.seeds import generator


def with_labels(x: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return examples with classes `[B]` written in.

    Raises:
        ValueError: when an example has fewer numbers than there are classes.
    """
    return _written(x, functional.one_hot(labels, num_classes).to(x.dtype))


def with_neutral_label(x: Tensor, num_classes: int) -> Tensor:
    """Return examples whose label says every class alike."""
    return _written(x, x.new_full((len(x), num_classes), 1.0 / num_classes))


def with_every_label(x: Tensor, num_classes: int) -> Tensor:
    """Return `[B, C, ...]`: each example with each class written in."""
    classes = torch.arange(num_classes, device=x.device)
    return torch.stack([with_labels(x, label.expand(len(x)), num_classes) for label in classes], dim=1)


def wrong_labels(labels: Tensor, num_classes: int, seed: int) -> Tensor:
    """Return for each example a class that is not its own, all of those alike likely.

    Raises:
        ValueError: when there is one class only.
    """
    if num_classes < 2:
        raise ValueError(f"a wrong label needs at least 2 classes, got {num_classes}")
    steps = torch.from_numpy(generator(seed, "wrong labels").integers(1, num_classes, len(labels)))
    return (labels + steps.to(labels.device)) % num_classes


def _written(x: Tensor, label: Tensor) -> Tensor:
    size, num_classes = math.prod(x.shape[1:]), label.shape[1]
    if size < num_classes:
        raise ValueError(f"examples of {size} numbers have no room for a label of {num_classes} classes")
    flat = x.flatten(1).clone()
    flat[:, :num_classes] = label * flat.abs().amax(dim=1, keepdim=True)
    return flat.view_as(x)
