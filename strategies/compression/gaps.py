"""Sorted positions as the gaps between them, in whichever delimited code is shortest.

The first position counts from -1, so every gap is at least 1. Four codes compete for a list:

- Rice: `(gap - 1) >> r` in unary and `r` plain bits; near the best for positions without structure.
- Elias gamma: the number of bits in unary, then the bits.
- classes: half an octave of gaps is a class, classes by Huffman, the place within a class in plain bits; it follows
  any distribution, so it gains where positions cluster.
- adaptive: the same classes through `adaptive`, each together with its position's mark; for few positions only.

Positions may carry a bit each, such as the sign of the weight there. Source: Rice & Plaunt 1971; Elias 1975,
section III (gamma); classes as the distance codes of RFC 1951, section 3.2.5.
"""

from __future__ import annotations

import numpy as np

from strategies.compression import adaptive, huffman
from strategies.compression.base import Array, CodecError
from strategies.compression.bits import Reader, Writer

_RICE, _GAMMA, _CLASSES, _ADAPTIVE = range(4)
_PLAIN = (_RICE, _GAMMA)
_MAX_BITS = 48  # more than any tree has elements
_MIN_ADAPTIVE = 256  # fewer symbols teach the adaptive coder nothing
_MIN_MEAN_ADAPTIVE = 32  # a smaller mean gap means so many symbols that its speed would show
_MARK = 0x80


def gaps_of(positions: Array) -> Array:
    """Return the gaps of ascending positions, the first one counted from -1."""
    return np.diff(positions, prepend=-1)


def num_bits(gaps: Array, *, plain: bool = False) -> int:
    """Return how many bits `write` takes without marks and without the adaptive code, up to a few bytes."""
    if not gaps.size:
        return 0
    costs = _costs(gaps, np.bincount(_classes(gaps)))
    return min(costs[code] for code in (_PLAIN if plain else costs))


def write(out: Writer, gaps: Array, marks: Array | None = None, *, plain: bool = False) -> None:
    """Append gaps, all at least 1, and their marks (uint8, 0 or 1); the reader must know how many.

    Args:
        plain: use Rice or Elias gamma only.
    """
    if not gaps.size:
        return
    symbols = _classes(gaps)
    counts = np.bincount(symbols)
    costs = _costs(gaps, counts)
    code = min(_PLAIN if plain else costs, key=lambda code: (costs[code], code))
    mark_counts = np.bincount(marks) if marks is not None else np.zeros(1, np.int64)
    if not plain and are_few(gaps):
        extra = _extra(symbols)
        packed = adaptive.squeeze(symbols if marks is None else symbols | (marks << 7))
        others = costs[code] + (huffman.num_bits(mark_counts) if marks is not None else 0)
        if 8 * len(packed) + 32 + int(extra.sum()) < others:
            out.fixed(np.array([_ADAPTIVE]), 2)
            out.varint(len(packed))
            out.raw(packed)
            out.variable(gaps, extra)
            return
    out.fixed(np.array([code]), 2)
    if code == _RICE:
        parameter, _ = _rice(gaps)
        out.fixed(np.array([parameter]), 6)
        _write_unary(out, (gaps - 1) >> parameter)
        out.fixed(gaps - 1, parameter)
    elif code == _GAMMA:
        exponents = symbols >> 1
        _write_unary(out, exponents)
        out.variable(gaps, exponents)
    else:
        huffman.write(out, symbols, counts)
        out.variable(gaps, _extra(symbols))
    if marks is not None:
        huffman.write(out, marks, mark_counts)


def read(source: Reader, count: int, bound: int) -> Array:
    """Read `count` gaps without marks; return the ascending positions, all below `bound`."""
    return _read(source, count, bound, marked=False)[0]


def read_marked(source: Reader, count: int, bound: int) -> tuple[Array, Array]:
    """Read `count` gaps with marks; return the ascending positions, all below `bound`, and the marks."""
    return _read(source, count, bound, marked=True)


def _read(source: Reader, count: int, bound: int, *, marked: bool) -> tuple[Array, Array]:
    if count > bound:
        raise CodecError(f"{count} positions in {bound} places")
    marks: Array = np.zeros(0, np.uint8)
    if not count:
        return np.zeros(0, np.int64), marks
    gaps: Array
    code = int(source.fixed(1, 2)[0])
    if code == _RICE:
        parameter = int(source.fixed(1, 6)[0])
        if parameter > _MAX_BITS:
            raise CodecError(f"a Rice parameter of {parameter}")
        quotients = _read_unary(source, count)
        if int(quotients.max()) > bound >> parameter:
            raise CodecError("a position lies outside its tensor")
        gaps = ((quotients << parameter) | source.fixed(count, parameter)) + 1
    elif code == _GAMMA:
        exponents = _read_unary(source, count)
        if int(exponents.max()) > _MAX_BITS:
            raise CodecError(f"a gap of {exponents.max()} bits")
        gaps = (np.int64(1) << exponents) | source.variable(exponents)
    else:
        if code == _CLASSES:
            symbols = huffman.read(source, count)
        else:
            symbols = adaptive.expand(source.raw(source.varint()), count)
            symbols, marks = symbols & ~np.uint8(_MARK), symbols >> 7
        if int(symbols.max()) > 2 * _MAX_BITS + 1:
            raise CodecError("a class of gaps out of range")
        classes = symbols.astype(np.int64)
        extra = _extra(classes)
        top = np.where(classes > 0, 2 | (classes & 1), 1)  # a gap's first two bits; 1 is the gap 1
        gaps = (top << extra) | source.variable(extra)
    if int(gaps.max()) > bound:
        raise CodecError("a position lies outside its tensor")
    positions: Array = np.cumsum(gaps) - 1  # at most 2**31 gaps of less than 2**32: no overflow
    if int(positions[-1]) >= bound:
        raise CodecError("a position lies outside its tensor")
    if marked and code != _ADAPTIVE:
        marks = huffman.read(source, count)
    return positions, marks


def _costs(gaps: Array, counts: Array) -> dict[int, int]:
    classes = np.arange(counts.size)
    by_class = huffman.num_bits(counts) + int((_extra(classes) * counts).sum())
    return {_RICE: _rice(gaps)[1], _GAMMA: int(((2 * (classes >> 1) + 1) * counts).sum()), _CLASSES: by_class}


def are_few(gaps: Array) -> bool:
    """Return whether the adaptive code is worth a try: enough to learn from, too few for its speed to show."""
    return gaps.size >= _MIN_ADAPTIVE and int(gaps.sum()) >= gaps.size * _MIN_MEAN_ADAPTIVE


def _classes(gaps: Array) -> Array:
    """Return `2 e + b` for a gap of e + 1 binary digits `1 b ...`, as floating-point numbers hold them."""
    if int(gaps.max()) < 1 << 24:
        return ((gaps.astype(np.float32).view(np.int32) >> 22) - 2 * 127).astype(np.uint8)
    return ((gaps.astype(np.float64).view(np.int64) >> 51) - 2 * 1023).astype(np.uint8)


def _extra(symbols: Array) -> Array:
    return np.asarray(np.maximum(symbols >> 1, 1) - 1)


def _rice(gaps: Array) -> tuple[int, int]:
    """Return the best Rice parameter and its cost in bits."""
    likely = int(np.log2(max(float(gaps.mean()) - 0.5, 1.0)))
    best = min((int(((gaps - 1) >> r).sum()) + gaps.size * (r + 1), r) for r in range(max(likely - 1, 0), likely + 2))
    return best[1], best[0]


def _write_unary(out: Writer, values: Array) -> None:
    ends = np.cumsum(values + 1)
    bits = np.zeros(int(ends[-1]), np.uint8)
    bits[ends - 1] = 1
    out.varint(bits.size)
    out.bits(bits)


def _read_unary(source: Reader, count: int) -> Array:
    ends = np.flatnonzero(source.bits(source.varint()))
    if ends.size != count:
        raise CodecError(f"{ends.size} integers in unary, {count} expected")
    return np.asarray(np.diff(ends, prepend=-1) - 1)
