"""The adaptive coder: exact, shorter where symbols depend on the one before, and safe on bad input."""

from __future__ import annotations

import numpy as np
import pytest

from strategies.compression import CodecError, adaptive, gaps, huffman
from strategies.compression.bits import Reader, Writer


def runs(num_symbols: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Two states that last about thirty symbols each, four symbols in either."""
    rng = np.random.default_rng(0)
    state = np.cumsum(rng.random(num_symbols) < 0.03) % 2
    return (128 * state + rng.choice(4, num_symbols, p=[0.9, 0.05, 0.03, 0.02])).astype(np.uint8)


@pytest.mark.parametrize("num_symbols", [0, 1, 300, 5000])
def test_symbols_come_back(num_symbols: int) -> None:
    symbols = runs(num_symbols)
    assert np.array_equal(adaptive.expand(memoryview(adaptive.squeeze(symbols)), num_symbols), symbols)
    for few in (False, True):
        out = Writer()
        adaptive.write(out, symbols, few=few)
        out.varint(5)
        source = Reader(out.getvalue())
        assert np.array_equal(adaptive.read(source, num_symbols), symbols)
        assert source.varint() == 5


def test_it_learns_what_huffman_cannot() -> None:
    symbols = runs(5000)
    assert 8 * len(adaptive.squeeze(symbols)) < 0.9 * huffman.num_bits(np.bincount(symbols))


def test_gaps_that_depend_on_the_one_before_take_fewer_bits_than_their_classes_alone() -> None:
    steps = np.where(runs(5000) >= 128, 1000, 2).astype(np.int64) + runs(5000) % 4
    marks = (np.cumsum(np.random.default_rng(1).random(5000) < 0.03) % 2).astype(np.uint8)
    out = Writer()
    gaps.write(out, steps, marks)
    assert len(out.getvalue()) * 8 < 0.9 * (gaps.num_bits(steps) + 5000)
    positions, found = gaps.read_marked(Reader(out.getvalue()), 5000, int(steps.sum()))
    assert np.array_equal(positions, np.cumsum(steps) - 1)
    assert np.array_equal(found, marks)


def test_what_it_did_not_write_is_refused() -> None:
    packed = adaptive.squeeze(runs(1000))
    with pytest.raises(CodecError):
        adaptive.expand(memoryview(packed[:100]), 1000)
    with pytest.raises(CodecError):
        adaptive.expand(memoryview(packed), 1001)
    with pytest.raises(CodecError):
        adaptive.expand(memoryview(b"\xff" * 50), 1000)


def test_it_makes_no_more_than_was_asked_for() -> None:
    packed = adaptive.squeeze(np.zeros(10_000_000, np.uint8))
    assert len(packed) < 3000
    assert adaptive.expand(memoryview(packed), 10).size == 10
