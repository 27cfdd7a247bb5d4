"""How FedZip's authors count: bits by formula, without centroids, delimiters or headers.

Kept beside the real bytes so that a published ratio can be told from a true one. Source: malekijoo/FedZip, `FedZip.py`:
Huffman 2 c1 + c2 + c3 for cluster sizes c1 <= c2 <= c3 (its lengths violate Kraft's inequality), addresses of 27 bits
for the two smaller clusters, and for differences `floor(log2 g) + 1` bits a gap (1 for g < 2), the first gap being the
position itself. Other numbers of clusters than 3, which the authors do not have, count a valid Huffman code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from strategies.base import Tree
from strategies.compression import huffman
from strategies.compression.base import Array
from strategies.compression.fedzip import FedZip

_ADDRESS_BITS = 27
_WEIGHT_BITS = 32


class Count(NamedTuple):
    """Bits of one tree by the authors' formulas, and how many weights they stand for."""

    huffman: int
    positions: int
    differences: int
    num_weights: int

    def ratio(self, encoding: str) -> float:
        """Return `32 N / bits` for one of the three encodings; infinite where no bit is counted."""
        bits = {"huffman": self.huffman, "positions": self.positions, "differences": self.differences}[encoding]
        return _WEIGHT_BITS * self.num_weights / bits if bits else float("inf")


def authors_bits(codec: FedZip, tree: Tree) -> Count:
    """Return the authors' count of what `codec` sends for the floating-point tensors of a tree."""
    floats = {name: tensor for name, tensor in tree.items() if tensor.is_floating_point()}
    totals = np.zeros(4, np.int64)
    for _, found in codec.quantised(floats):
        counts = np.sort(found.counts)
        words = np.array([2, 1, 1]) if counts.size == 3 else huffman.lengths(counts)
        steps = [np.diff(positions, prepend=0) for positions in found.minorities()]
        gaps = np.concatenate(steps) if steps else np.zeros(0, np.int64)
        totals += [(words * counts).sum(), found.positions.size * _ADDRESS_BITS, _lengths(gaps).sum(), found.size]
    return Count(*(int(total) for total in totals))


def _lengths(gaps: Array) -> Array:
    return np.maximum(np.frexp(gaps.astype(np.float64))[1], 1)
