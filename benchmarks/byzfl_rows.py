"""ByzFL's own benchmark, run here: MNIST, ten honest clients and f attackers, the worst of three attacks.

Distributed SGD with worker momentum 0.9 and learning rate 0.1, a batch of 25 for each client and step, 800 steps,
weight decay 1e-4, the convolutional network `cnn_mnist`; the data is divided by similarity gamma; the attackers own no
data and know what all honest clients send. Vectors are clipped to length 2 and mixed with their neighbours (NNM) before
the aggregator. As there, the accuracy of a run is its best over the evaluations, every 50 steps, and that of a row is
the least over the attacks; the last one is printed, too. The published values are read off the heat maps that ByzFL
ships, the mean of three seeds.

A run is one line of `--out`, written when it is done, and is not repeated when it is found there; `--table` prints the
rows of which all attacks are there, and trains nothing. Minutes are processor time of this process.

    python -m benchmarks.byzfl_rows [--out FILE] [--aggregators trimmed_mean geometric_median] [--rows 1.0:4 all ...]
                                    [--attacks sign_flip ...] [--steps 800] [--seed 0] [--workers 0] [--table]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import orchestrator
from benchmarks import records

HONEST = 10
ATTACKS = ("sign_flip", "optimal_inner_product_manipulation", "optimal_little_is_enough")
PUBLISHED: dict[str, dict[float, tuple[float, float, float, float]]] = {
    "trimmed_mean": {
        0.0: (0.87, 0.61, 0.26, 0.21), 0.33: (0.98, 0.97, 0.94, 0.91),
        0.66: (0.98, 0.97, 0.97, 0.97), 1.0: (0.98, 0.98, 0.98, 0.98),
    },
    "geometric_median": {
        0.0: (0.87, 0.56, 0.26, 0.27), 0.33: (0.98, 0.96, 0.94, 0.94),
        0.66: (0.98, 0.97, 0.97, 0.96), 1.0: (0.98, 0.98, 0.98, 0.97),
    },
}  # fmt: skip
"""Worst accuracy by aggregator and gamma, for f of 1 to 4."""
ALL = tuple(f"{gamma}:{f}" for gamma in PUBLISHED["trimmed_mean"] for f in range(1, 5))
ROWS = ("0.33:1", "0.0:1", "0.66:2", "0.33:3", "1.0:4")


def network(input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    """Return ByzFL's `cnn_mnist`: convolutions of 20 and 50 filters, 500 hidden units; 431,080 weights."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, num_classes),
    )  # fmt: skip


def config(arguments: argparse.Namespace, aggregator: str, gamma: float, f: int, attack: str) -> dict[str, Any]:
    """Return one run."""
    return {
        "name": "byzfl",
        "seed": arguments.seed,
        "data": {"name": "mnist", "partition": {"kind": "similarity", "clients": HONEST, "gamma": gamma}},
        "model": {"target": "benchmarks.byzfl_rows:network"},
        "strategy": {
            "algorithm": {"name": "worker-momentum", "rounds": arguments.steps, "server_lr": 0.1, "momentum": 0.9},
            "client": {"steps": 1, "batch_size": 25, "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4}},
            "attack": {"name": attack, "attackers": f, "join": True},
            "aggregator": {"name": aggregator, "pre": [{"name": "clipping", "radius": 2.0}, {"name": "nnm"}]},
        },
        "evaluate": {"every": 50},
        "checkpoint": {"every": arguments.steps, "keep": 1},
        "cluster": {"workers": arguments.workers},
        "tracking": {"enabled": False},
    }


def measured(root: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Run it; return the best and the last test accuracy, and seconds of this process."""
    began = time.process_time()
    result = orchestrator.run(settings, root=root, quiet=True)
    rows = result.history().to_pylist()
    found = [row["value"] for row in rows if (row["scope"], row["name"]) == ("test", "accuracy")]
    return {"best": max(found), "last": found[-1], "seconds": time.process_time() - began}


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """Yield aggregator, gamma and f of the rows asked for."""
    named = ALL if "all" in arguments.rows else arguments.rows
    for aggregator in arguments.aggregators:
        for row in named:
            gamma, f = row.split(":")
            yield aggregator, float(gamma), int(f)


def key(arguments: argparse.Namespace, aggregator: str, gamma: float, f: int, attack: str) -> dict[str, Any]:
    """Return what tells runs apart."""
    which = {"aggregator": aggregator, "gamma": gamma, "f": f, "attack": attack}
    return {**which, "seed": arguments.seed, "steps": arguments.steps}


def one(
    arguments: argparse.Namespace, folder: Path, aggregator: str, gamma: float, f: int, attack: str
) -> records.Record | None:
    """Return a run: found, or made where that is asked for."""
    wanted = key(arguments, aggregator, gamma, f, attack)
    if arguments.table or attack not in arguments.attacks:
        return records.found(arguments.out, wanted)
    settings = config(arguments, aggregator, gamma, f, attack)
    return records.once(arguments.out, wanted, lambda: measured(folder, settings))


def line(aggregator: str, gamma: float, f: int, runs: Sequence[records.Record]) -> str:
    """Return a row's line: the worst over its attacks."""
    best, last = min(run["best"] for run in runs), min(run["last"] for run in runs)
    minutes = sum(run["seconds"] for run in runs) / 60
    published = PUBLISHED[aggregator][gamma][f - 1]
    return f"| {aggregator} | {gamma:g} | {f} | {best:.3f} | {last:.3f} | {published:.2f} | {minutes:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="results, a line of JSON each")
    parser.add_argument("--aggregators", nargs="+", choices=PUBLISHED, default=["trimmed_mean", "geometric_median"])
    parser.add_argument("--rows", nargs="+", choices=("all", *ALL), default=ROWS, help="gamma:f")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print what there is in --out and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| aggregator | gamma | f | worst of three attacks | worst last | ByzFL | minutes |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells(arguments):
            runs = [run for run in (one(arguments, Path(folder), *cell, attack) for attack in ATTACKS) if run]
            if len(runs) == len(ATTACKS):
                print(line(*cell, runs), flush=True)


if __name__ == "__main__":
    main()
