"""Random-k: as many elements as asked for, chosen at random; the seed travels in place of the positions.

Source: Stich et al. 2018, "Sparsified SGD with memory", definition 2.2 (rand_k); with the factor n/k it is unbiased
(Wangni et al. 2018, section 2, with equal probabilities) but no contraction, so error feedback needs `unbiased=False`.
The seed is 8 bytes; both ends must draw alike, which numpy's SFC64 and `Generator.choice` do for one numpy version.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression import selection
from strategies.compression.base import Spec, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.topk import scatter


@dataclass(frozen=True)
class RandomK(Stage):
    """Keep some.

    Args:
        keep: the fraction of each tensor kept, in (0, 1]; at least one element.
        unbiased: whether kept values are multiplied by n/k, so that the mean over seeds is the tensor.
    """

    keep: float = 0.01
    unbiased: bool = True
    name: ClassVar[str] = "random-k"
    kind: ClassVar[Kind] = "reduce"
    random = True

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: the fraction kept is above 0 and at most 1")
        object.__setattr__(self, "contractive", not self.unbiased or self.keep == 1)

    @property
    def signature(self) -> str:
        """The fraction is part of it: from it and the seed follow the positions."""
        return f"{self.name}({self.keep!r})"

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append the seed; hand on the values it chooses."""
        seed = int(rng.integers(1 << 63))
        out.raw(seed.to_bytes(8, "little"))
        kept = {}
        for index, (name, tensor) in enumerate(tree.items()):
            places = self._places(seed, index, tensor.numel())
            values = tensor.reshape(-1)[places]
            kept[name] = values * (tensor.numel() / places.numel()) if self.unbiased and places.numel() else values
            if not torch.isfinite(kept[name]).all():
                raise ValueError(f"tensor {name!r} times n/k leaves the range of {tensor.dtype}")
        return kept

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Put the values where the seed says, among zeros."""
        seed = int.from_bytes(source.raw(8), "little")
        counts = {name: selection.count_kept(self.keep, spec.numel) for name, spec in specs.items()}
        values = inner({name: Spec((counts[name],), spec.dtype) for name, spec in specs.items()})
        return {
            name: scatter(values[name], self._places(seed, index, spec.numel), spec)
            for index, (name, spec) in enumerate(specs.items())
        }

    def _places(self, seed: int, index: int, size: int) -> Tensor:
        rng = np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(index,))))
        count = selection.count_kept(self.keep, size)
        chosen = rng.choice(size, count, replace=False, shuffle=False) if count else np.zeros(0, np.int64)
        return torch.from_numpy(np.sort(chosen))
