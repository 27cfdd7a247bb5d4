"""For `bristle_study`: what a Bristle peer trains, a matrix without bias on frozen features, and its gradient.

With features `x` and logits `z = x W`, the mean cross-entropy of a minibatch has the gradient

    dL/dW = x^T (softmax(z) - onehot(y)) / b,

so a step needs neither a graph nor a module. Peers of the engine train by `trainers.peers.learner`, on any optimizer.
Adam steps as `torch.optim.Adam` does, with L2 in the gradient (`g + l2 W`), which is also what the authors' library
does.

Source: Kingma & Ba 2015, "Adam", algorithm 1; constants of Verbraeken et al. 2021 (arXiv:2110.11006): learning rate
1e-3, L2 5e-3, start at zero.

Shapes: `W [..., F, C]`, features `[..., b, F]`, labels `[..., b]`; leading dimensions are peers stepping together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """What Adam is told."""

    lr: float = 1e-3
    l2: float = 5e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


class Moments(NamedTuple):
    """What Adam remembers: both moments in the shape of W, and how many steps were made, int64 and 0-d."""

    first: Tensor
    second: Tensor
    step: Tensor


PAPER = Adam()
"""The paper's constants."""


def no_moments(weights: Tensor) -> Moments:
    """Return the memory of an optimizer that has not stepped yet."""
    return Moments(torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros((), dtype=torch.int64))


def gradient(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy by the matrix.

    Raises:
        ValueError: when there is no example, or features and matrix do not fit.
    """
    if features.shape[-1] != weights.shape[-2] or not features.shape[-2]:
        raise ValueError(
            f"features {list(features.shape)} do not fit a matrix {list(weights.shape)}: "
            f"give [..., b, {weights.shape[-2]}] with b at least 1"
        )
    error = torch.softmax(features @ weights, dim=-1)
    error.scatter_add_(-1, labels.unsqueeze(-1), error.new_full((*labels.shape, 1), -1.0))
    return features.transpose(-1, -2) @ error / features.shape[-2]


def adam_step(weights: Tensor, grad: Tensor, moments: Moments, adam: Adam = PAPER) -> tuple[Tensor, Moments]:
    """Return the matrix after one step, and what to remember; nothing given is written to."""
    step = moments.step + 1
    count = int(step)
    if adam.l2:
        grad = grad.add(weights, alpha=adam.l2)
    first = moments.first.lerp(grad, 1 - adam.beta1)
    second = (moments.second * adam.beta2).addcmul_(grad, grad, value=1 - adam.beta2)
    scale = (second / (1 - adam.beta2**count)).sqrt_().add_(adam.eps)
    return weights.addcdiv(first, scale, value=-adam.lr / (1 - adam.beta1**count)), Moments(first, second, step)


def train_step(
    weights: Tensor, moments: Moments, features: Tensor, labels: Tensor, adam: Adam = PAPER
) -> tuple[Tensor, Moments]:
    """Return the matrix after one minibatch, and what to remember."""
    return adam_step(weights, gradient(weights, features, labels), moments, adam)
