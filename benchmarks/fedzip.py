"""FedZip in real bytes: what it saves on the authors' network, by their count and by the length of payloads.

The network is that of the authors' code: two convolutions of 32 and 64 filters, pooling, 128 hidden units, dropout, in
all 1,199,882 weights. Ten clients hold MNIST digits of their own and make one epoch a round. Each row is a run of its
own: the test accuracy after the last round, what all clients sent in all rounds (plain size over payload size, headers,
centroids and code tables included), and for FedZip the ratio as the authors count it, on the update of one client from
the initial model: bits of the codes alone, without delimiters or headers.

`--network vgg` takes six convolutions in pairs with pooling after each, and 256 hidden units, in their place.

    python -m benchmarks.fedzip [--rounds 30] [--images 200] [--network vgg] [--seeds 0 1 2] [--rows 0 7 8]

Rows count from 0, the run without a codec, in the order of the table; a table of some rows is as good as their part of
a whole one, so that a long one can be run in parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.preparing import prepare
from strategies.compression import FedZip
from strategies.compression.fedzip_count import authors_bits
from trainers import modules, wire
from trainers.data.base import to_labels, to_tensor
from trainers.local import LocalSettings, Task, train

CLIENTS = 10
KMEANS = {"clusters": 7, "scope": "tree", "iterations": 20, "encoding": "entropy"}
ROWS: tuple[tuple[dict[str, Any] | None, bool], ...] = (
    (None, False),
    ({"keep": 0.2, "encoding": "huffman"}, False),
    ({"keep": 0.2, "encoding": "differences"}, False),
    ({"keep": 0.2, "encoding": "differences"}, True),
    ({"keep": 0.01, "encoding": "entropy", "init": "quantile"}, False),
    ({"keep": 0.01, "encoding": "entropy", "init": "quantile"}, True),
    ({"keep": 0.015, **KMEANS}, True),
    ({"keep": 0.01, **KMEANS}, False),
    ({"keep": 0.01, **KMEANS}, True),
)
"""FedZip's arguments, and whether with error feedback; the first row has no codec."""


def network(input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    """Return the network of the authors' `deploy.py`."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, num_classes),
    )  # fmt: skip


def vgg(input_shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    """Return a small network of VGG's pattern: pairs of padded convolutions, then pooling."""
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for filters in (32, 64, 128):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(filters, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = filters
    side = input_shape[1] // 8
    dense = [nn.Linear(128 * side * side, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, num_classes)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


NETWORKS = {"authors": "network", "vgg": "vgg"}


class Setting(NamedTuple):
    """What all rows have in common."""

    rounds: int
    images: int
    seed: int
    network: str


def config(setting: Setting, codec: Mapping[str, Any] | None, feedback: bool) -> dict[str, Any]:
    """Return one run."""
    return {
        "name": "fedzip",
        "seed": setting.seed,
        "data": {
            "name": "mnist", "limit": CLIENTS * setting.images, "partition": {"kind": "iid", "clients": CLIENTS},
        },
        "model": {"target": f"benchmarks.fedzip:{NETWORKS[setting.network]}"},
        "strategy": {
            "algorithm": {"name": "fedavg", "rounds": setting.rounds},
            "client": {"batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05}},
            "compression": [dict(codec)] if codec else [],
            "error_feedback": feedback,
        },
        "cluster": {"workers": 0},
        "evaluate": {"every": setting.rounds},
        "checkpoint": {"every": setting.rounds, "keep": 1},
        "tracking": {"enabled": False},
    }  # fmt: skip


def one(root: Path, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Run it; return the final test accuracy and the bytes that a client sent in a round."""
    result = orchestrator.run(dict(settings), root=root, quiet=True)
    rows = result.history().to_pylist()
    sent = [row["value"] for row in rows if (row["scope"], row["name"]) == ("comm", "uplink_bytes")]
    return result.metrics["test/accuracy"], sum(sent) / len(sent) / CLIENTS


def update(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the first update of client 0."""
    prepared = prepare(load_experiment(dict(settings)).experiment)
    assert prepared.partition is not None
    rows = prepared.partition.rows(0)
    x = to_tensor(prepared.dataset.train_x[rows], prepared.dataset, torch.float32)
    local = LocalSettings.from_section(prepared.experiment.strategy.client.model_dump())
    task = Task(0, 1, modules.snapshot(prepared.model))
    y = to_labels(prepared.dataset.train_y[rows])
    return train(prepared.model, task, x, y, local, run_seed=prepared.experiment.seed).delta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--images", type=int, default=200, help="of each client")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--network", choices=NETWORKS, default="authors")
    parser.add_argument("--rows", type=int, nargs="+", choices=range(len(ROWS)), default=range(len(ROWS)))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for place, seed in enumerate(arguments.seeds):
        table(Setting(arguments.rounds, arguments.images, seed, arguments.network), arguments.rows, head=not place)


def table(setting: Setting, rows: Sequence[int], *, head: bool) -> None:
    """Run some rows with one seed and print each as it is done."""
    first = update(config(setting, None, False))
    plain = wire.size(first)
    if head:
        print(f"{sum(tensor.numel() for tensor in first.values()):,} weights, {plain:,} bytes plain")
        print("| row | codec | error feedback | seed | accuracy | plain over payload | by the authors' count |")
        print("|---|---|---|---|---|---|---|", flush=True)
    for row in rows:
        codec, feedback = ROWS[row]
        label, counted = "none", ""
        if codec is not None:
            label = ", ".join(f"{key} {value}" for key, value in codec.items())
            counted = authors(FedZip(**codec), first)
        with tempfile.TemporaryDirectory() as folder:
            settings = config(setting, None if codec is None else {"name": "fedzip", **codec}, feedback)
            accuracy, num_bytes = one(Path(folder), settings)
        fed, ratio = "yes" if feedback else "no", f"{plain / num_bytes:.1f}"
        print(f"| {row} | {label} | {fed} | {setting.seed} | {accuracy:.2%} | {ratio} | {counted} |", flush=True)


def authors(codec: FedZip, tree: Mapping[str, Tensor]) -> str:
    """Return the ratio that the authors would print for the codec's encoding."""
    encoding = "differences" if codec.encoding == "entropy" else codec.encoding
    return f"{authors_bits(codec, tree).ratio(encoding):.1f}"


if __name__ == "__main__":
    main()
