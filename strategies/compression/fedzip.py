"""FedZip: the largest weights of each tensor, rounded to a few values by k-means, and their positions in few bits.

    w -> top-z: the round(z n) largest |w|, ties kept, others 0 -> k-means, k = 3 -> huffman | positions | differences

Source: Malekijoo et al. 2021, "FedZip: A compression framework for communication-efficient federated learning",
sections on Top-z, k-means and the three encodings, read with the authors' code (malekijoo/FedZip, `FedZip.py`), which
settles z = 0.2, biases left unpruned, centroids from `linspace(min, max, 3)` and 4 Lloyd steps.

Deviations: the authors print sizes and send nothing; these are bytes that decode (`clusters`), their count is in
`fedzip_count`. Their Huffman lengths {1, 1, 2} are no prefix code; ours are a complete one. See `kmeans` for the
means. Options of ours: `encoding="entropy"`, `scope="tree"` (one threshold and one codebook for the model),
`init="quantile"`, and `pin_zero`, which moves the largest cluster's centroid to exactly 0: the authors' pruned
weights come back as a small non-zero number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from strategies.base import Tree
from strategies.compression import clusters as records
from strategies.compression import kmeans, selection
from strategies.compression.base import Array, Specs, specs_of
from strategies.compression.bits import Reader, Writer
from strategies.compression.chain import Inner, Kind, Stage
from strategies.compression.clusters import Clusters, Encoding
from strategies.compression.floats import restored


@dataclass(frozen=True)
class FedZip(Stage):
    """Top-z, k-means and position codes.

    Args:
        keep: z, the fraction of weights kept, in (0, 1]; counted tensor by tensor, or over the tree.
        clusters: k, the number of distinct values a tensor may take, 1 to 256.
        encoding: how positions are coded; `entropy` takes the shortest of several codes.
        scope: `tensor` prunes and clusters each tensor for itself; `tree` all of them as one vector.
        skip: tensors whose name this regular expression finds are clustered but not pruned; None prunes all. Tensors
            without dimensions are never pruned.
        init, iterations: where k-means starts and how many Lloyd steps it takes.
        pin_zero: whether the largest cluster becomes exactly zero (only where something was pruned).
    """

    keep: float = 0.2
    clusters: int = 3
    encoding: Encoding = "huffman"
    scope: Literal["tensor", "tree"] = "tensor"
    skip: str | None = "bias"
    init: kmeans.Init = "linspace"
    iterations: int = 4
    pin_zero: bool = False
    name: ClassVar[str] = "fedzip"
    kind: ClassVar[Kind] = "whole"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: the fraction kept is above 0 and at most 1")
        if not 1 <= self.clusters <= records.MAX_CLUSTERS:
            raise ValueError(f"clusters={self.clusters}: 1 to {records.MAX_CLUSTERS}")
        if self.iterations < 0:
            raise ValueError(f"iterations={self.iterations}: at least 0")
        for what, given, known in (
            ("encoding", self.encoding, get_args(Encoding)),
            ("scope", self.scope, ("tensor", "tree")),
            ("init", self.init, get_args(kmeans.Init)),
        ):
            if given not in known:
                raise ValueError(f"{what}={given!r}: one of {', '.join(known)}")
        try:
            re.compile(self.skip or "")
        except re.error as error:
            raise ValueError(f"skip={self.skip!r} is not a regular expression: {error}") from error

    @property
    def signature(self) -> str:
        """The grouping of the tensors; codes and centroids name themselves."""
        return self.name if self.scope == "tensor" else f"{self.name}({self.scope}, {self.skip})"

    def write(self, tree: Tree, out: Writer, rng: np.random.Generator) -> dict[str, Tensor]:
        """Append one record a group of tensors."""
        for _, found in self.quantised(tree):
            records.write(out, found, self.encoding)
        return {}

    def read(self, specs: Specs, source: Reader, inner: Inner) -> dict[str, Tensor]:
        """Read the records."""
        result: dict[str, Tensor] = {}
        for names in self._groups(specs):
            sizes = [specs[name].numel for name in names]
            found = records.read(source, sum(sizes), _dtype(specs, names), _num_columns(specs, names))
            pieces = np.split(found.dense(), np.cumsum(sizes)[:-1])
            result |= {name: restored(piece, specs[name]) for name, piece in zip(names, pieces, strict=True)}
        return result

    def quantised(self, tree: Tree) -> list[tuple[tuple[str, ...], Clusters]]:
        """Return what is coded of a tree of finite floats: for each group of tensors its clusters."""
        specs = specs_of(tree)
        found = []
        for names in self._groups(specs):
            dtype = _dtype(specs, names)
            flat = [tree[name].detach().to("cpu").reshape(-1).to(_TORCH[dtype]).numpy() for name in names]
            values = flat[0] if len(flat) == 1 else np.concatenate(flat)
            prune = not self._skipped(names[0], specs)
            stored = specs[names[0]].dtype if len(names) == 1 else _TORCH[dtype]
            found.append((names, self._cluster(values, prune, stored, _num_columns(specs, names))))
        return found

    def _cluster(self, values: Array, prune: bool, stored: torch.dtype, num_columns: int) -> Clusters:
        if not values.size:
            return Clusters(0, np.zeros(1, values.dtype), np.zeros(0, np.int64), np.zeros(0, np.uint8))
        count = selection.count_kept(self.keep, values.size) if prune else values.size
        places = selection.with_ties(values, count)
        kept = values[places]
        means = kmeans.centroids(
            kept, values.size - places.size, self.clusters, init=self.init, iterations=self.iterations
        )
        if stored.itemsize == 2:  # what the decoded tensor can hold
            means = np.unique(torch.from_numpy(means).to(stored).to(torch.float32).numpy())
        labels = kmeans.assign(kept, means)
        home = int(kmeans.assign(np.zeros(1, values.dtype), means)[0])
        counts = np.bincount(labels, minlength=means.size)
        counts[home] += values.size - places.size
        largest = int(counts.argmax())
        if largest == home:
            outside = labels != home
            places, labels = places[outside], labels[outside]
        else:
            everywhere = np.full(values.size, home, np.uint8)
            everywhere[places] = labels
            places = np.flatnonzero(everywhere != largest)
            labels = everywhere[places]
        if self.pin_zero and largest == home and places.size < values.size and count < values.size:
            means[home] = 0
        return _without_empty(Clusters(values.size, means, places, labels, num_columns), largest, counts)

    def _groups(self, specs: Specs) -> list[tuple[str, ...]]:
        if self.scope == "tensor":
            return [(name,) for name in specs]
        alone = [name for name in specs if self._skipped(name, specs)]
        together = tuple(name for name in specs if not self._skipped(name, specs))
        return [*([together] if together else []), *((name,) for name in alone)]

    def _skipped(self, name: str, specs: Specs) -> bool:
        return not specs[name].shape or (self.skip is not None and re.search(self.skip, name) is not None)


_TORCH: dict[type[np.generic], torch.dtype] = {np.float32: torch.float32, np.float64: torch.float64}


def _dtype(specs: Specs, names: tuple[str, ...]) -> type[np.generic]:
    return np.float64 if any(specs[name].dtype == torch.float64 for name in names) else np.float32


def _num_columns(specs: Specs, names: tuple[str, ...]) -> int:
    shape = specs[names[0]].shape
    return specs[names[0]].numel // shape[0] if len(names) == 1 and len(shape) > 1 and shape[0] else 0


def _without_empty(found: Clusters, largest: int, counts: Array) -> Clusters:
    """Put the largest cluster first and drop clusters without members."""
    present = np.flatnonzero(counts)
    order = np.concatenate([[largest], present[present != largest]])
    number = np.zeros(counts.size, np.uint8)
    number[order] = np.arange(order.size)
    return found._replace(values=found.values[order], labels=number[found.labels])
