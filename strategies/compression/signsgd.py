"""Scaled signSGD: one bit an element, and one scale a tensor.

    C(v) = (||v||_1 / d) sign(v)

Source: Bernstein et al. 2018, "signSGD", Algorithm 1 (signs); Karimireddy et al. 2019, "Error feedback fixes SignSGD",
section 3, equation for the scaled sign, which is a contraction and so may take error feedback. sign(0) is +1. Biased.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from strategies.base import Tree
from strategies.compression.base import CodecError, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.floats import flat32, restored


@dataclass(frozen=True)
class SignSGD(Stage):
    """Signs and the mean magnitude."""

    name: ClassVar[str] = "signsgd"
    kind: ClassVar[Kind] = "quantise"

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append scale and signs."""
        for name, tensor in tree.items():
            values = flat32(name, tensor)
            if values.size:
                out.array(np.array([np.abs(values).mean(dtype=np.float64)], np.float32))
                out.bits(values < 0)
        return {}

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Multiply signs by the scale."""
        result = {}
        for name, spec in specs.items():
            values = np.zeros(0, np.float32)
            if spec.numel:
                scale = source.array(1, np.float32)[0]
                if not 0 <= scale < np.inf:
                    raise CodecError(f"tensor {name!r} has a scale of {scale}")
                values = np.array([scale, -scale])[source.bits(spec.numel)]
            result[name] = restored(values, spec)
        return result
