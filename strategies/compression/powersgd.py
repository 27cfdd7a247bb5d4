"""PowerSGD: a matrix as the product of two thin ones, found by a step of subspace iteration.

    P = M Q,  P orthonormalised,  Q' = M^T P,  decoded P Q'^T

Source: Vogels, Karimireddy & Jaggi 2019, "PowerSGD: Practical low-rank gradient compression for distributed
optimization", Algorithm 1. A tensor is the matrix of its first dimension by the rest; vectors, and matrices whose
factors would be no smaller, are handed on whole (section 3). Deviations: orthonormalisation by QR in place of
Gram-Schmidt; Q starts at random from the seed in every encoding, where the paper starts from the last step's Q
(section 4.2, "warm start"): a codec has no memory, and `iterations` above 1 buys the same accuracy with time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression.base import Spec, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.floats import fitted


@dataclass(frozen=True)
class PowerSGD(Stage):
    """Two thin factors.

    Args:
        rank: columns of the factors.
        iterations: steps of subspace iteration.
    """

    rank: int = 2
    iterations: int = 1
    name: ClassVar[str] = "powersgd"
    kind: ClassVar[Kind] = "reduce"
    random = True

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.rank < 1 or self.iterations < 1:
            raise ValueError(f"rank={self.rank}, iterations={self.iterations}: both at least 1")

    @property
    def signature(self) -> str:
        """The rank is part of it."""
        return f"{self.name}({self.rank})"

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Hand on both factors of each matrix."""
        rest = {}
        for name, tensor in tree.items():
            if not self._factored(Spec(tuple(tensor.shape), tensor.dtype)):
                rest[name] = tensor
                continue
            matrix = tensor.reshape(tensor.shape[0], -1).to(_wide(tensor.dtype))
            largest = matrix.abs().max()
            if largest > 0:  # factors of a scaled matrix neither overflow nor vanish
                matrix = matrix / largest
            right = torch.from_numpy(rng.standard_normal((matrix.shape[1], self.rank))).to(matrix.dtype)
            for _ in range(self.iterations):
                left = torch.linalg.qr(matrix @ right).Q
                right = matrix.T @ left
            rest[f"{name}/left"], rest[f"{name}/right"] = left, right * largest
            if not torch.isfinite(rest[f"{name}/right"]).all():
                raise ValueError(
                    f"tensor {name!r} reaches {float(largest):.3g}: its factors leave {matrix.dtype}'s range"
                )
        return rest

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Multiply the factors."""
        wanted: dict[str, Spec] = {}
        for name, spec in specs.items():
            if self._factored(spec):
                num_rows, dtype = spec.shape[0], _wide(spec.dtype)
                wanted[f"{name}/left"] = Spec((num_rows, self.rank), dtype)
                wanted[f"{name}/right"] = Spec((spec.numel // num_rows, self.rank), dtype)
            else:
                wanted[name] = spec
        found = inner(wanted)
        result = {}
        for name, spec in specs.items():
            if self._factored(spec):
                product = found[f"{name}/left"] @ found[f"{name}/right"].T
                result[name] = fitted(product, spec)
            else:
                result[name] = found[name]
        return result

    def _factored(self, spec: Spec) -> bool:
        if len(spec.shape) < 2 or not spec.numel:
            return False
        num_rows, num_columns = spec.shape[0], spec.numel // spec.shape[0]
        return self.rank * (num_rows + num_columns) < spec.numel


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
