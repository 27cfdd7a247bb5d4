"""How fast each codec is and how many bytes it makes of a 25-million-weight update, on one core.

The update is synthetic: 12 matrices of 1024 x 2032 and their biases, normal values times a lognormal size for each row
and column, so that tails are heavy and large weights gather as in real updates. MB are 10^6 bytes of float32; seconds
are CPU seconds of one thread, so that neighbours on the machine count little. Ratios are bytes of the tree over bytes
of the payload, everything counted. Error is the relative squared error of one encoding.

    python -m benchmarks.codecs [--repeats 5] [--only fedzip]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from strategies.compression import FedZip, authors_bits, build

ROWS: list[list[dict[str, Any]]] = [
    [],
    [{"name": "zstd"}],
    [{"name": "fp16"}],
    [{"name": "bf16"}],
    [{"name": "bf16", "stochastic": True}],
    [{"name": "int8"}],
    [{"name": "int8"}, {"name": "zstd"}],
    [{"name": "signsgd"}],
    [{"name": "terngrad"}],
    [{"name": "qsgd"}],
    [{"name": "powersgd", "rank": 4}],
    [{"name": "random-k", "keep": 0.01}],
    [{"name": "top-k", "keep": 0.01}],
    [{"name": "top-k", "keep": 0.01}, {"name": "int8"}],
    [{"name": "top-k", "keep": 0.01}, {"name": "signsgd"}],
    *(
        [{"name": "fedzip", "keep": keep, "init": "linspace", "encoding": encoding}]
        for keep in (0.2, 0.01)
        for encoding in ("huffman", "positions", "differences", "entropy")
    ),
    [
        {
            "name": "fedzip",
            "keep": 0.0125,
            "init": "linspace",
            "encoding": "entropy",
            "scope": "tree",
            "clusters": 7,
            "iterations": 20,
        }
    ],
    *(
        [{"name": "fedzip", "keep": keep, "init": "quantile", "encoding": encoding}]
        for keep in (0.2, 0.05, 0.01, 0.002)
        for encoding in ("huffman", "differences", "entropy")
    ),
]


def update(seed: int = 0) -> dict[str, Tensor]:
    """Return the tree all codecs are given."""
    rng = torch.Generator().manual_seed(seed)
    tree = {}
    for layer in range(12):
        rows, columns = ((0.7 * torch.randn(size, generator=rng)).exp() for size in (1024, 2032))
        values = torch.randn(1024, 2032, generator=rng)
        tree[f"layers.{layer}.weight"] = 1e-3 * values * rows[:, None] * columns[None, :]
        tree[f"layers.{layer}.bias"] = 1e-3 * torch.randn(1024, generator=rng)
    return tree


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Return the CPU seconds of a piece of work, after one go that does not count."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return taken


def described(entries: list[dict[str, Any]]) -> str:
    """Write a chain on one line."""
    said = {"stochastic": "stochastic", "clusters": "k={}", "iterations": "{} steps", "rank": "rank {}"}
    words = [" ".join(said.get(key, "{}").format(value) for key, value in entry.items()) for entry in entries]
    return " + ".join(words) or "dense"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tree = update()
    size = sum(tensor.numel() * 4 for tensor in tree.values())
    print(f"{size / 1e6:.1f} MB, {arguments.repeats} repeats: median (lowest to highest)\n")
    print("| codec | encode MB/s | decode MB/s | ratio | authors' ratio | error |")
    print("|---|---|---|---|---|---|")
    for entries in ROWS:
        if arguments.only not in described(entries):
            continue
        codec = build(entries).bind(tree)
        payload = codec.encode(tree)
        decoded = codec.decode(payload)
        wrong = sum(float((decoded[name] - tree[name]).square().sum()) for name in tree)
        error = wrong / sum(float(tensor.square().sum()) for tensor in tree.values())
        speeds = []
        for work in (lambda c=codec: c.encode(tree), lambda c=codec, p=payload: c.decode(p)):
            rates = [size / 1e6 / taken for taken in seconds(work, arguments.repeats)]
            speeds.append(f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})")
        first = codec.stages[0] if codec.stages else None
        theirs = "" if not isinstance(first, FedZip) or first.encoding == "entropy" else first.encoding
        count = f"{authors_bits(first, tree).ratio(theirs):.1f}" if isinstance(first, FedZip) and theirs else ""
        figures = f"{size / len(payload):.1f} | {count} | {error:.3g}"
        print(f"| {described(entries)} | {speeds[0]} | {speeds[1]} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
