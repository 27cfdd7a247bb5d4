"""Mutated payloads of every codec end in `CodecError` or in a tree of the right kind: never a crash, a hang, or a huge
allocation.

Most mutants get a checksum and a body length that fit, so that they reach the code behind the frame. The long
run, a million mutants, is `slow`; run by hand it prints its figures:

    python tests/contract/test_codecs_fuzz.py [--mutants 1000000]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from strategies.base import Tree
from strategies.compression import Codec, CodecError, build

sys.path.insert(0, str(Path(__file__).parent))
from codec_rows import ROWS

sys.path.pop(0)

MAX_BYTES = 1 << 20
HEAD_BYTES = 120  # where headers, schemas and first tables are: a third of all mutations goes there


def victim(seed: int) -> dict[str, torch.Tensor]:
    """A small tree whose payloads have every kind of record."""
    rng = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(24, 30, generator=rng) ** 3,
        "sparse": torch.randn(9000, generator=rng) * (torch.rand(9000, generator=rng) < 0.03),
        "bias": torch.randn(7, generator=rng),
        "h": torch.randn(5, generator=rng).to(torch.bfloat16),
        "d": torch.randn(2, 2, 3, generator=rng, dtype=torch.float64),
        "n": torch.tensor(5),
        "flag": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }


def mutated(payload: bytes, donor: bytes, rng: np.random.Generator) -> bytes:
    """One to four mutations: bits, bytes, runs that read as huge integers, cuts, repeats, pieces of another payload."""
    data = bytearray(payload)
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        limit = min(len(data), HEAD_BYTES) if rng.random() < 0.35 else len(data)
        place, other = (int(number) for number in rng.integers(limit, size=2))
        length = int(rng.integers(1, 12))
        match int(rng.integers(8)):
            case 0 | 1:
                data[place] ^= 1 << int(rng.integers(8))
            case 2:
                data[place] = int(rng.integers(256))
            case 3:
                data[place : place + length] = b"\xff" * (length - 1) + b"\x7f"
            case 4:
                data[place : place + length] = bytes(length)
            case 5:
                del data[place : place + int(rng.integers(1, 40))]
            case 6:
                data[place:place] = data[other : other + 4 * length]
            case 7:
                start = int(rng.integers(len(donor)))
                data[place : place + 4 * length] = donor[start : start + 4 * length]
    return bytes(data)


def resealed(payload: bytes, at: int) -> bytes:
    """The payload with the length of its body (an integer at `at`) and its checksum put right."""
    head, tail = payload[:at], payload[at:-4]
    skip = 0
    while skip < len(tail) and tail[skip] >= 0x80 and skip < 9:
        skip += 1
    body, number = tail[skip + 1 :], bytearray()
    size = len(body)
    while size >= 0x80:
        number.append(size & 0x7F | 0x80)
        size >>= 7
    number.append(size)
    framed = head + bytes(number) + body
    return framed + zlib.crc32(framed).to_bytes(4, "little")


def attack(codec: Codec, tree: Tree, num_mutants: int, seed: int) -> tuple[Counter[str], float]:
    """Decode mutants of a codec's payload; count how they end, and return the longest CPU seconds of one."""
    rng = np.random.default_rng(seed)
    payload, donor = codec.encode(tree), codec.encode(dict(reversed(victim(seed + 1).items())))
    bound = codec.bind(tree)
    pairs = [(codec, payload), (bound, bound.encode(tree))]
    ends: Counter[str] = Counter()
    longest = 0.0
    for index in range(num_mutants):
        reader, original = pairs[index % 2]
        mutant = mutated(original, donor, rng)
        if rng.random() < 0.75:
            at = 12 if reader is bound else _length_at(payload)
            mutant = resealed(mutant, at)
        start = time.process_time()
        try:
            found = reader.decode(mutant, max_bytes=MAX_BYTES)
        except CodecError:
            ends["refused"] += 1
        else:
            ends["decoded"] += 1
            assert sum(tensor.numel() * tensor.element_size() for tensor in found.values()) <= MAX_BYTES
            if reader is bound:
                assert [(k, v.shape, v.dtype) for k, v in found.items()] == [
                    (k, v.shape, v.dtype) for k, v in tree.items()
                ]
        longest = max(longest, time.process_time() - start)
    return ends, longest


def _length_at(payload: bytes) -> int:
    """Where a self-describing payload says how long its body is."""
    from strategies.compression.bits import Reader

    source = Reader(payload)
    source.raw(4)
    source.raw(source.varint())
    for _ in range(source.varint()):
        source.raw(source.varint())
        source.varint()
        for _ in range(source.varint()):
            source.varint()
    return len(payload) - source.num_bytes_left


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_row(name: str, num_mutants: int) -> tuple[Counter[str], float, int]:
    codec = build(ROWS[name])
    attack(codec, victim(0), 50, 1)  # so that what libraries allocate once is allocated
    before = peak_bytes()
    ends, longest = attack(codec, victim(0), num_mutants, zlib.crc32(name.encode()))
    return ends, longest, peak_bytes() - before


@pytest.mark.parametrize("name", ROWS)
def test_a_mutant_is_refused_or_a_tree(name: str) -> None:
    ends, _, grown = one_row(name, 150)
    assert ends.total() == 150
    assert ends["refused"] > 0
    assert grown < 128 * MAX_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.timeout(1200)
def test_a_million_mutants_are_refused_or_trees(name: str) -> None:
    num_mutants = -(-1_000_000 // len(ROWS))
    ends, _, grown = one_row(name, num_mutants)
    assert ends.total() == num_mutants
    assert grown < 128 * MAX_BYTES


def main() -> None:
    """Attack every row and print how it ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=1_000_000)
    num_mutants = -(-parser.parse_args().mutants // len(ROWS))
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    for name in ROWS:
        ends, longest, grown = one_row(name, num_mutants)
        total += ends
        print(f"{name:30} {dict(ends)} longest {longest * 1e3:.1f} ms, peak +{grown / 1e6:.1f} MB", flush=True)
    print(dict(total), f"peak {peak_bytes() / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
