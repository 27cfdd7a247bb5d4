"""A tensor of few distinct values as bytes: the codes that FedZip chooses from.

The largest cluster is implicit: what is not mentioned belongs to it. The four codes are FedZip's three and one more:

- huffman: one code word a weight, so at most 32x.
- positions: for each other cluster its positions, `ceil(log2 n)` bits each.
- differences: for each other cluster the gaps between its positions, in Rice or Elias-gamma code.
- entropy (ours): the gaps of all other clusters' positions together, by rows or by columns, marked with their signs, in
  whichever code of `gaps` is shortest, then which cluster of that sign; or one of the other three
  where that is shorter.

A record is: kind, centroids (the largest cluster's first; left out when it is exactly zero), code. Source: FedZip
(Malekijoo et al. 2021), section "encoding"; the authors only count bits, so every delimiter here is ours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from strategies.compression import adaptive, gaps, huffman
from strategies.compression.base import Array, CodecError
from strategies.compression.bits import Reader, Writer

Encoding = Literal["huffman", "positions", "differences", "entropy"]
_HUFFMAN, _POSITIONS, _DIFFERENCES, _TOGETHER, _BY_COLUMN = range(5)
_APART = {_HUFFMAN, _POSITIONS, _DIFFERENCES}
_PINNED = 0x80
_FEW = 512
"""Elements outside the largest cluster up to which every kind of code is written and the shortest taken."""
MAX_CLUSTERS = 256


class Clusters(NamedTuple):
    """A flat tensor whose elements take few values.

    Args:
        size: number of elements.
        values: the value of each cluster; the first is the largest cluster's, the others ascend.
        positions: where the elements outside the largest cluster are, ascending.
        labels: their clusters, 1 and up, uint8.
        num_columns: what is left when the first dimension is taken away; 0 where there is one dimension only.
    """

    size: int
    values: Array
    positions: Array
    labels: Array
    num_columns: int = 0

    @property
    def counts(self) -> Array:
        """Number of elements of each cluster."""
        counts = np.bincount(self.labels, minlength=self.values.size)
        counts[0] = self.size - self.positions.size
        return counts

    def minorities(self) -> list[Array]:
        """Return the positions of each cluster but the largest."""
        if self.values.size <= 4:
            return [self.positions[self.labels == label] for label in range(1, self.values.size)]
        ordered = self.positions[np.argsort(self.labels, kind="stable")]
        return np.split(ordered, np.cumsum(self.counts[1:-1]))

    def dense(self) -> Array:
        """Return the elements."""
        result = np.full(self.size, self.values[0])
        result[self.positions] = self.values[self.labels]
        return result


def write(out: Writer, clusters: Clusters, encoding: Encoding) -> None:
    """Append a record; nothing for an empty tensor."""
    if not clusters.size:
        return
    small = encoding == "entropy" and clusters.positions.size <= _FEW
    kind, columns = _shortest(clusters) if small else _choose(clusters, encoding)
    pinned = not clusters.values[0] and not np.signbit(clusters.values[0])
    out.raw(bytes([kind | (_PINNED if pinned else 0), clusters.values.size - 1]))
    out.array(clusters.values[int(pinned) :])
    if clusters.values.size == 1:
        return
    _write_places(out, clusters, kind, columns)


def _write_places(out: Writer, clusters: Clusters, kind: int, columns: tuple[Array, Array] | None) -> None:
    """Append which elements have which value, in one kind of code."""
    if kind == _HUFFMAN:
        everywhere = np.zeros(clusters.size, np.uint8)
        everywhere[clusters.positions] = clusters.labels
        huffman.write(out, everywhere, clusters.counts)
    elif kind in (_POSITIONS, _DIFFERENCES):
        for positions in clusters.minorities():
            out.varint(positions.size)
            if kind == _POSITIONS:
                out.fixed(positions, _width(clusters.size))
            else:
                gaps.write(out, gaps.gaps_of(positions), plain=True)
    else:
        _write_together(out, clusters.values, *(columns or (clusters.positions, clusters.labels)))


def read(source: Reader, size: int, dtype: type[np.generic], num_columns: int = 0) -> Clusters:
    """Read the record of a tensor of `size` elements."""
    if not size:
        return Clusters(0, np.zeros(1, dtype), np.zeros(0, np.int64), np.zeros(0, np.uint8), num_columns)
    head, num_values = source.raw(2)
    kind, pinned = head & ~_PINNED, bool(head & _PINNED)
    values = source.array(num_values + 1 - pinned, dtype)
    if pinned:
        values = np.concatenate([np.zeros(1, dtype), values])
    if num_values == 0:
        return Clusters(size, values, np.zeros(0, np.int64), np.zeros(0, np.uint8), num_columns)
    if kind == _HUFFMAN:
        everywhere = huffman.read(source, size)
        positions = np.flatnonzero(everywhere)
        labels = everywhere[positions]
    elif kind in (_POSITIONS, _DIFFERENCES):
        positions, labels = _read_minorities(source, size, values.size, by_gaps=kind == _DIFFERENCES)
    elif kind in (_TOGETHER, _BY_COLUMN):
        positions, labels = _read_together(source, size, values)
        if kind == _BY_COLUMN:
            if num_columns < 1 or size % num_columns:
                raise CodecError("positions by column in a tensor without columns")
            num_rows = size // num_columns
            positions = positions % num_rows * num_columns + positions // num_rows
    else:
        raise CodecError(f"code {kind} for clusters is unknown")
    if int(labels.max(initial=0)) >= values.size:
        raise CodecError("an element of a cluster that is not there")
    return Clusters(size, values, positions, labels, num_columns)


def _read_minorities(source: Reader, size: int, num_values: int, *, by_gaps: bool) -> tuple[Array, Array]:
    found, labels, left = [], [], size
    for label in range(1, num_values):
        count = source.varint()
        if count > left:
            raise CodecError(f"{count} positions in {left} places")
        left -= count
        found.append(gaps.read(source, count, size) if by_gaps else source.fixed(count, _width(size)))
        labels.append(np.full(count, label, np.uint8))
        if count and int(found[-1].max()) >= size:
            raise CodecError("a position lies outside its tensor")
    return np.concatenate(found), np.concatenate(labels)


def _write_together(out: Writer, values: Array, positions: Array, labels: Array) -> None:
    out.varint(positions.size)
    below = _num_below(values)
    above = labels > below
    steps = gaps.gaps_of(positions)
    gaps.write(out, steps, above.view(np.uint8))
    for side, first, num_labels in ((~above, 1, below), (above, 1 + below, values.size - 1 - below)):
        if num_labels > 1:
            adaptive.write(out, labels[side] - np.uint8(first), few=gaps.are_few(steps))


def _read_together(source: Reader, size: int, values: Array) -> tuple[Array, Array]:
    positions, marks = gaps.read_marked(source, source.varint(), size)
    if int(marks.max(initial=0)) > 1:
        raise CodecError("a mark is neither 0 nor 1")
    below = _num_below(values)
    labels = np.where(marks == 1, 1 + below, 1)
    for mark, num_labels in ((0, below), (1, values.size - 1 - below)):
        if num_labels > 1:
            side = np.flatnonzero(marks == mark)
            labels[side] += adaptive.read(source, side.size)
    if int(labels.max(initial=0)) >= values.size:
        raise CodecError("an element of a cluster that is not there")
    return positions, labels.astype(np.uint8)


def _num_below(values: Array) -> int:
    """Return how many clusters but the largest are negative; their labels come first."""
    return int(np.count_nonzero(values[1:] < 0))


def _choose(clusters: Clusters, encoding: Encoding) -> tuple[int, tuple[Array, Array] | None]:
    """Return the kind of code, and positions and labels by column where that is the kind."""
    if encoding != "entropy":
        return {"huffman": _HUFFMAN, "positions": _POSITIONS, "differences": _DIFFERENCES}[encoding], None
    by_row = gaps.num_bits(gaps.gaps_of(clusters.positions))
    below = _num_below(clusters.values)
    counts = clusters.counts[1:]
    labels = clusters.positions.size + sum(
        huffman.num_bits(side) for side in (counts[:below], counts[below:]) if side.size > 1
    )
    apart = sum(gaps.num_bits(gaps.gaps_of(places), plain=True) + 8 for places in clusters.minorities())
    costs = {
        _HUFFMAN: huffman.num_bits(clusters.counts),
        _POSITIONS: clusters.positions.size * _width(clusters.size) + 8 * (clusters.values.size - 1),
        _DIFFERENCES: apart,
        _TOGETHER: by_row + labels,
    }
    columns = None
    if 1 < clusters.num_columns < clusters.size:
        columns = _by_column(clusters)
        costs[_BY_COLUMN] = gaps.num_bits(gaps.gaps_of(columns[0])) + labels
    kind, together = (min(kinds, key=lambda kind: (costs[kind], kind)) for kinds in (costs, costs.keys() - _APART))
    if kind != together and costs[together] < 1.3 * costs[kind] and gaps.are_few(gaps.gaps_of(clusters.positions)):
        trial = Writer()  # the estimate knows nothing of the adaptive code
        columns = columns if together == _BY_COLUMN else None
        _write_together(trial, clusters.values, *(columns or (clusters.positions, clusters.labels)))
        kind = together if 8 * len(trial.getvalue()) < costs[kind] else kind
    return kind, columns if kind == _BY_COLUMN else None


def _shortest(clusters: Clusters) -> tuple[int, tuple[Array, Array] | None]:
    """Return what `_choose` does, by writing every kind: where there is little to write, small fields decide."""
    columns = _by_column(clusters) if 1 < clusters.num_columns < clusters.size else None
    kinds = [_HUFFMAN, _POSITIONS, _DIFFERENCES, _TOGETHER, *([_BY_COLUMN] if columns else [])]
    lengths = {}
    for kind in kinds if clusters.values.size > 1 else []:
        trial = Writer()
        _write_places(trial, clusters, kind, columns if kind == _BY_COLUMN else None)
        lengths[kind] = len(trial.getvalue())
    kind = min(lengths, key=lambda kind: (lengths[kind], kind)) if lengths else _HUFFMAN
    return kind, columns if kind == _BY_COLUMN else None


def _by_column(clusters: Clusters) -> tuple[Array, Array]:
    """Return positions and labels as they are in the transposed matrix."""
    num_rows = clusters.size // clusters.num_columns
    if clusters.positions.size * 64 < clusters.size:
        places = clusters.positions % clusters.num_columns * num_rows + clusters.positions // clusters.num_columns
        order = np.argsort(places, kind="stable")
        return places[order], clusters.labels[order]
    everywhere = np.zeros((num_rows, clusters.num_columns), np.uint8)
    everywhere.reshape(-1)[clusters.positions] = clusters.labels
    turned = everywhere.T.ravel()
    places = np.flatnonzero(turned)
    return places, turned[places]


def _width(size: int) -> int:
    return max(size - 1, 0).bit_length()
