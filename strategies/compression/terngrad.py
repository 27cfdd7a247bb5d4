"""TernGrad: every element becomes -s, 0 or s, at random and without bias.

    s = max |v|,   P(|t_i| = 1) = |v_i| / s,   E s t = v

Source: Wen et al. 2017, "TernGrad: Ternary gradients to reduce communication in distributed deep learning", section
3.1; a scale for each layer, and clipping at a number of standard deviations, as in its section on layer-wise
ternarizing and gradient clipping; clipping is off unless asked for, because it is biased. The three
symbols are Huffman coded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from strategies.base import Tree
from strategies.compression import huffman
from strategies.compression.base import CodecError, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.floats import flat32, restored


@dataclass(frozen=True)
class TernGrad(Stage):
    """Three values.

    Args:
        clip: standard deviations at which a tensor is cut off before (the paper: 2.5); None does not clip.
    """

    clip: float | None = None
    name: ClassVar[str] = "terngrad"
    kind: ClassVar[Kind] = "quantise"
    random = True
    contractive = False  # its error is sum |v_i| (s - |v_i|), which is larger than ||v||^2 for most tensors

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip}: above 0, or null")

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append scale and signs."""
        for name, tensor in tree.items():
            values = flat32(name, tensor)
            if not values.size:
                continue
            if self.clip is not None:
                limit = np.float32(self.clip * values.std(dtype=np.float64))
                values = np.clip(values, -limit, limit)
            sizes = np.abs(values)
            scale = sizes.max()
            drawn = rng.random(values.size, dtype=np.float32)
            drawn *= scale
            symbols = (drawn < sizes).astype(np.uint8)
            symbols += symbols & (values < 0)  # 0, 1 for s, 2 for -s
            out.array(np.array([scale], np.float32))
            huffman.write(out, symbols, np.bincount(symbols, minlength=3))
        return {}

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Multiply signs by the scale."""
        result = {}
        for name, spec in specs.items():
            values = np.zeros(0, np.float32)
            if spec.numel:
                scale = source.array(1, np.float32)[0]
                symbols = huffman.read(source, spec.numel)
                if not 0 <= scale < np.inf or int(symbols.max()) > 2:
                    raise CodecError(f"tensor {name!r} is not ternary")
                values = np.array([0, scale, -scale], np.float32)[symbols]
            result[name] = restored(values, spec)
        return result
