"""Fewer bits a number: float16, bfloat16, and 8-bit integers with one scale a tensor.

Rounding is to the nearest, or stochastic: up or down with odds that make the mean exact (Gupta et al. 2015, "Deep
learning with limited numerical precision", section 3.1). int8 is symmetric, `round(127 v / max |v|)` (Jacob et al.
2018, section 2.1, with zero point 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression.base import CodecError, Spec, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.floats import fitted, flat32, restored


@dataclass(frozen=True)
class _Half(Stage):
    stochastic: bool = False
    kind: ClassVar[Kind] = "quantise"
    dtype: ClassVar[torch.dtype]

    def __post_init__(self) -> None:
        object.__setattr__(self, "random", self.stochastic)

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Hand on narrower tensors."""
        rest = {}
        for name, tensor in tree.items():
            narrow = tensor.to(self.dtype)
            if not torch.isfinite(narrow).all():
                raise ValueError(
                    f"tensor {name!r} reaches {float(tensor.abs().max()):.3g}, beyond {self.name}'s largest number "
                    f"{torch.finfo(self.dtype).max:.3g}; use another codec"
                )
            rest[name] = self._rounded(tensor, narrow, rng) if self.stochastic else narrow
        return rest

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Widen."""
        narrow = inner({name: Spec(spec.shape, self.dtype) for name, spec in specs.items()})
        return {name: fitted(narrow[name], spec) for name, spec in specs.items()}

    def _rounded(self, tensor: Tensor, narrow: Tensor, rng: np.random.Generator) -> Tensor:
        near = narrow.reshape(-1)
        wide = near.to(torch.float32)
        error = tensor.reshape(-1).to(torch.float32) - wide
        other = torch.nextafter(near, torch.copysign(torch.tensor(torch.inf), error).to(self.dtype))
        step = other.to(torch.float32).sub_(wide)
        drawn = torch.from_numpy(rng.random(near.numel(), dtype=np.float32))
        away = torch.isfinite(other) & (drawn.mul_(step).abs_() < error.abs_())
        return torch.where(away, other, near).reshape(tensor.shape)


@dataclass(frozen=True)
class FP16(_Half):
    """IEEE half precision: 11 bits of precision, up to 65504.

    Args:
        stochastic: round at random, without bias.
    """

    name: ClassVar[str] = "fp16"
    dtype: ClassVar[torch.dtype] = torch.float16


@dataclass(frozen=True)
class BF16(_Half):
    """Brain floating point: 8 bits of precision, float32's range.

    Args:
        stochastic: round at random, without bias.
    """

    name: ClassVar[str] = "bf16"
    dtype: ClassVar[torch.dtype] = torch.bfloat16


@dataclass(frozen=True)
class Int8(Stage):
    """Integers from -127 to 127 and a float32 scale a tensor.

    Args:
        stochastic: round at random, without bias.
    """

    stochastic: bool = False
    name: ClassVar[str] = "int8"
    kind: ClassVar[Kind] = "quantise"

    def __post_init__(self) -> None:
        """Random only where rounding is."""
        object.__setattr__(self, "random", self.stochastic)

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append scales; hand on integers."""
        rest = {}
        for name, tensor in tree.items():
            values = flat32(name, tensor)
            low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
            largest = np.float32(max(-low, high))
            out.array(np.array([largest]))
            scaled = values.astype(np.float32) * (np.float32(127) / largest if largest > 1e-36 else np.float32(0))
            if self.stochastic:
                scaled += rng.random(values.size, dtype=np.float32)
                np.floor(scaled, out=scaled)
            else:
                np.rint(scaled, out=scaled)
            rest[name] = torch.from_numpy(np.clip(scaled, -127, 127).astype(np.int8)).reshape(tensor.shape)
        return rest

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Multiply integers by the scale."""
        scales = {name: source.array(1, np.float32)[0] for name in specs}
        for name, scale in scales.items():
            if not 0 <= scale < np.inf:
                raise CodecError(f"tensor {name!r} has a scale of {scale}")
        integers = inner({name: Spec(spec.shape, torch.int8) for name, spec in specs.items()})
        result = {}
        for name, spec in specs.items():
            values = integers[name].reshape(-1).numpy().astype(np.float32)
            values /= np.float32(127)
            values *= scales[name]
            result[name] = restored(values, spec)
        return result
