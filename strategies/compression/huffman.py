"""Canonical Huffman codes over small alphabets, stored so that no step loops over symbols.

The bits of the code words are stored by depth: the first bit of every word, then the second bit of every word longer
than one bit, and so on. That permutes the bits of the usual stream and changes no length; both directions then take
one array operation for each depth. Code words are at most 15 bits, so that a table takes four bits a symbol.

Source: Huffman 1952; canonical codes as in RFC 1951, section 3.2.2. Where 15 bits do not suffice, counts are halved
until they do, which keeps the code complete (Kraft's sum is 1) and costs less than 0.1 %.
"""

from __future__ import annotations

import heapq

import numpy as np

from strategies.compression.base import Array, CodecError
from strategies.compression.bits import Reader, Writer

MAX_LENGTH = 15
MAX_SYMBOLS = 256


def lengths(counts: Array) -> Array:
    """Return the length of each symbol's code word; 0 for symbols that do not occur, and for a lone symbol."""
    weights = np.asarray(counts, np.int64)
    while True:
        result = _unlimited(weights)
        if result.max(initial=0) <= MAX_LENGTH:
            return result
        weights = np.where(weights > 0, (weights + 1) // 2, 0)


def _unlimited(counts: Array) -> Array:
    result = np.zeros(counts.size, np.int64)
    heap = [(int(count), symbol, [symbol]) for symbol, count in enumerate(counts) if count]
    heapq.heapify(heap)
    while len(heap) > 1:
        left, right = heapq.heappop(heap), heapq.heappop(heap)
        members = left[2] + right[2]
        result[members] += 1
        heapq.heappush(heap, (left[0] + right[0], min(left[1], right[1]), members))
    return result


def num_bits(counts: Array) -> int:
    """Return how many bits `write` takes for symbols with these counts, table included."""
    words = lengths(counts)
    return int((words * counts).sum()) + 16 + 4 * counts.size


def write(out: Writer, symbols: Array, counts: Array) -> None:
    """Append symbols (uint8) whose counts are given; the table goes first."""
    words = lengths(counts)
    present = np.flatnonzero(counts)
    if present.size < 2:
        out.fixed(np.array([present[0] if present.size else 0]), 16)
        return
    out.fixed(np.array([counts.size - 1]), 8)
    out.fixed(np.array([1]), 1)
    out.fixed(words, 4)
    codes = _codes(words)
    for depth in range(int(words.max())):
        ahead = words > depth
        bit = np.where(ahead, codes >> np.maximum(words - 1 - depth, 0) & 1, 0).astype(np.uint8)
        out.bits(bit[symbols])
        if depth + 1 < words.max():
            symbols = symbols[(words > depth + 1)[symbols]]


def read(source: Reader, count: int) -> Array:
    """Read `count` symbols as uint8."""
    size = int(source.fixed(1, 8)[0]) + 1
    if size == 1:  # one symbol only
        return np.full(count, source.fixed(1, 8)[0], np.uint8)
    if not source.bits(1)[0]:
        raise CodecError("not a Huffman table")
    words = source.fixed(size, 4)
    if int((1 << (MAX_LENGTH - words[words > 0])).sum()) != 1 << MAX_LENGTH:
        raise CodecError("the lengths of a Huffman code do not add up to a complete code")
    if count == 0:
        return np.zeros(0, np.uint8)
    prefix: Array = source.bits(count).astype(np.int32)  # also checks that there is as much, before more is allocated
    order = np.lexsort((np.arange(size), words))
    order = order[words[order] > 0].astype(np.uint8)
    result = np.empty(count, np.uint8)
    alive: Array | None = None  # the places still without a symbol; None means all
    first, offset = 0, 0
    for depth in range(1, int(words.max()) + 1):
        num_words = int(np.count_nonzero(words == depth))
        if depth > 1:
            prefix = prefix * 2 + source.bits(prefix.size)
        first *= 2
        done = prefix < first + num_words
        found = order[offset + prefix[done] - first]
        if alive is None:
            result[done] = found
            alive = np.flatnonzero(~done)
        else:
            result[alive[done]] = found
            alive = alive[~done]
        prefix = prefix[~done]
        first, offset = first + num_words, offset + num_words
    return result


def _codes(words: Array) -> Array:
    codes = np.zeros(words.size, np.int64)
    code = 0
    for depth in range(1, int(words.max()) + 1):
        code <<= 1
        for symbol in np.flatnonzero(words == depth):
            codes[symbol] = code
            code += 1
    return codes
