"""Top-k: the largest elements of each tensor, exactly, and where they are.

Source: Aji & Heafield 2017, "Sparse communication for distributed gradient descent", section 3; Stich et al. 2018,
"Sparsified SGD with memory", definition 2.2 (top_k), which needs error feedback to converge. Deviation: ties are
broken by place. Positions cost about `log2(1/keep) + 1.5` bits each (see `gaps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression import gaps, selection
from strategies.compression.base import Spec, Specs
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.floats import flat


@dataclass(frozen=True)
class TopK(Stage):
    """Keep the largest.

    Args:
        keep: the fraction kept, in (0, 1]; at least one element.
        scope: whether it is counted in each tensor, or over the whole tree.
    """

    keep: float = 0.01
    scope: Literal["tensor", "tree"] = "tensor"
    name: ClassVar[str] = "top-k"
    kind: ClassVar[Kind] = "reduce"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: the fraction kept is above 0 and at most 1")
        if self.scope not in ("tensor", "tree"):
            raise ValueError(f"scope={self.scope!r}: tensor or tree")

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append each tensor's positions; hand on its kept values."""
        kept = {}
        for (name, tensor), places in zip(tree.items(), self._places(tree), strict=True):
            out.varint(places.size)
            gaps.write(out, gaps.gaps_of(places))
            kept[name] = tensor.reshape(-1)[torch.from_numpy(places)]
        return kept

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Put the values at their positions among zeros."""
        places = {name: gaps.read(source, source.varint(), spec.numel) for name, spec in specs.items()}
        values = inner({name: Spec((places[name].size,), spec.dtype) for name, spec in specs.items()})
        return {name: scatter(values[name], torch.from_numpy(places[name]), spec) for name, spec in specs.items()}

    def _places(self, tree: Tree) -> list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        arrays = [flat(tensor) for tensor in tree.values()]
        if self.scope == "tensor":
            counts = [selection.count_kept(self.keep, array.size) for array in arrays]
            return [
                selection.exactly(array, count) if count else np.zeros(0, np.int64)
                for array, count in zip(arrays, counts, strict=True)
            ]
        together = np.concatenate([*arrays, np.zeros(0, np.float32)])
        count = selection.count_kept(self.keep, together.size)
        chosen = selection.exactly(together, count) if count else np.zeros(0, np.int64)
        ends = np.cumsum([array.size for array in arrays])
        cuts = np.searchsorted(chosen, [0, *ends])
        starts = [0, *ends]
        return [chosen[cuts[i] : cuts[i + 1]] - starts[i] for i in range(len(arrays))]


def scatter(values: Tensor, places: Tensor, spec: Spec) -> Tensor:
    """Return zeros of a description with values at flat places."""
    result = torch.zeros(spec.numel, dtype=spec.dtype)
    result[places] = values
    return result.reshape(spec.shape)
