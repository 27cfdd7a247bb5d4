"""QSGD: each bucket as its norm and, for each element, a sign and one of a few levels, rounded at random.

    Q(v_i) = ||v|| sign(v_i) l_i / s,   l_i = floor(s |v_i| / ||v||) + Bernoulli(the rest),   E Q(v) = v

Source: Alistarh et al. 2017, "QSGD: Communication-efficient SGD via gradient quantization and encoding", section 3.1,
its definition of Q_s; buckets as in section 4. Deviation: signed levels are Huffman coded, where the paper uses
Elias codes (section 3.2), which are longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from strategies.base import Tree
from strategies.compression import huffman
from strategies.compression.base import Array, CodecError, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.floats import flat32, restored


@dataclass(frozen=True)
class QSGD(Stage):
    """Quantise at random, without bias.

    Args:
        levels: s, 1 to 127; 1 leaves signs and zeros.
        bucket: elements that share one norm; the error grows with `min(bucket / s^2, sqrt(bucket) / s)`.
        norm: `l2` as in section 3.1, or `max` as in the paper's experiments: less error, more bits.
    """

    levels: int = 15
    bucket: int = 512
    norm: Literal["l2", "max"] = "l2"
    name: ClassVar[str] = "qsgd"
    kind: ClassVar[Kind] = "quantise"
    random = True

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 1 <= self.levels <= 127:
            raise ValueError(f"levels={self.levels}: 1 to 127")
        if self.bucket < 1:
            raise ValueError(f"bucket={self.bucket}: at least 1")
        if self.norm not in ("l2", "max"):
            raise ValueError(f"norm={self.norm!r}: l2 or max")
        object.__setattr__(self, "contractive", self.bucket < self.levels**2)  # Lemma 3.1: error <= min(...) ||v||^2

    @property
    def signature(self) -> str:
        """Levels and buckets are part of it."""
        return f"{self.name}({self.levels}, {self.bucket})"

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append norms and levels."""
        for name, tensor in tree.items():
            values = flat32(name, tensor)
            if not values.size:
                continue
            norms = self._norms(values)
            if not np.isfinite(norms).all():
                raise ValueError(f"tensor {name!r} has a norm beyond float32's range")
            out.array(norms)
            scaled = np.abs(values)
            scaled *= np.repeat(
                np.divide(np.float32(self.levels), norms, where=norms > 0, out=np.zeros_like(norms)), self.bucket
            )[: values.size]
            scaled += rng.random(values.size, dtype=np.float32)
            level = np.minimum(scaled, self.levels).astype(np.uint8)
            symbols = 2 * level - ((values < 0) & (level > 0))  # 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ...
            huffman.write(out, symbols, np.bincount(symbols, minlength=2 * self.levels + 1))
        return {}

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Multiply levels by norms."""
        result = {}
        signed = np.array([(code + 1) // 2 * (-1 if code % 2 else 1) for code in range(2 * self.levels + 1)])
        table = (signed / self.levels).astype(np.float32)
        for name, spec in specs.items():
            values = np.zeros(0, np.float32)
            if spec.numel:
                norms = source.array(-(-spec.numel // self.bucket), np.float32)
                if not np.isfinite(norms).all():
                    raise CodecError(f"tensor {name!r} has a norm that is not finite")
                symbols = huffman.read(source, spec.numel)
                if int(symbols.max()) >= table.size:
                    raise CodecError(f"tensor {name!r} has a level beyond {self.levels}")
                values = table[symbols]
                values *= np.repeat(norms, self.bucket)[: spec.numel]
            result[name] = restored(values, spec)
        return result

    def _norms(self, values: Array) -> Array:
        starts = np.arange(0, values.size, self.bucket)
        if self.norm == "max":
            return np.maximum.reduceat(np.abs(values), starts)
        squares = np.add.reduceat(np.square(values.astype(np.float64)), starts)
        with np.errstate(over="ignore"):
            return np.sqrt(squares).astype(np.float32)
