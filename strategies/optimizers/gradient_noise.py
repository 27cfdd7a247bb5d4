"""Annealed noise on gradients, which every rank that has a part of a tensor can draw for that part alone.

Source: Neelakantan et al. 2015, "Adding Gradient Noise Improves Learning for Very Deep Networks" (arXiv:1511.06807),
equation 1: to each element of the gradient of step t is added N(0, s^2) with the variance s^2 = eta / (1 + t)^gamma;
they choose eta from 0.01, 0.3 and 1 and set gamma to 0.55. Steps count from 0 here, so that the first has variance
eta; the paper does not say.

The numbers are a function of the run's seed, the step, the tensor's name and the element's index. A tensor is drawn in
chunks of `CHUNK` elements with a generator each, so a slice costs its own chunks. A generator that can be advanced
would not do: fast normal numbers take a varying number of its draws. They are drawn in float32 on the CPU whatever
the tensor is, so that they are the same on every device.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from strategies.seeds import generator

CHUNK = 1 << 14
"""Elements that are drawn together: what a slice may waste at either end, against making a generator for each."""


class GradientNoise(NamedTuple):
    """The noise of a run.

    Args:
        eta: variance at the first step. gamma: how fast it falls. seed: the run's.
    """

    eta: float
    gamma: float
    seed: int

    def deviation(self, step: int) -> float:
        """Return the standard deviation at a step, from 0."""
        return float((self.eta / (1 + step) ** self.gamma) ** 0.5)

    def draw(self, name: str, start: int, length: int, step: int) -> Tensor:
        """Return the noise of elements `[start, start + length)` of the flattened tensor `name`, `[length]`.

        Args:
            step: from 0.
        """
        word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        noise = np.empty(length, np.float32)
        for chunk in range(start // CHUNK, -(-(start + length) // CHUNK)):
            first = chunk * CHUNK
            end = min(first + CHUNK, start + length)
            random = generator(self.seed, "gradient noise", step, word, chunk)
            drawn = random.standard_normal(end - first, dtype=np.float32)
            begin = max(first, start)
            noise[begin - start : end - start] = drawn[begin - first :]
        noise *= np.float32(self.deviation(step))
        return torch.from_numpy(noise)
