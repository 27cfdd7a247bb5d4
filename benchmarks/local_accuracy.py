"""What local rules cost in accuracy: the same network, batches, optimizer and schedule by each rule, on Fashion-MNIST.

    bp             backpropagation: AugLocal's program with one module, whose loss is the model's own
    auglocal-D     AugLocal of depth D, with the paper's modules: as many as the network has units, less D
    dgl, predsim   every unit a module

on a ResNet with batch norm and shortcuts of option B. Rows named after another rule, and `mlp`, `cnn` for
backpropagation, train fully connected layers or a small CNN (which is in the table), each by the optimizer of its
rule's program: their papers have no residual networks. Images are means of 2 x 2 pixels unless `--size 28`.

Figures are of all 10,000 test images after the last step; nothing is chosen by them. A run is one line of `--out`,
written when it is done, and is not repeated when it is found there: what was interrupted goes on, and `--table` prints
what there is. All modules are in this process (`cluster.workers: 0`), on one thread.

    python -m benchmarks.local_accuracy --out FILE [--rows ...] [--seeds 3] [--examples 20000] [--epochs 5] [--table]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from strategies.local.counter_current import OPTIMIZER as COUNTER_CURRENT
from strategies.local.forward_forward import OPTIMIZER as FORWARD_FORWARD
from strategies.local.noprop import OPTIMIZER as NOPROP
from strategies.local.phyll import OPTIMIZER as PHYLL
from strategies.local.tpsgd import OPTIMIZER as TPSGD
from trainers.data import registry
from trainers.data.base import Dataset
from trainers.decoupled.inline import InlineWorkers
from trainers.decoupled.settings import Settings, build


class Row(NamedTuple):
    """One way to train.

    Args:
        rule: name and arguments. net: of `NETS`. optimizer: None for that of the residual network.
        published: what the rule's paper reports, on another network or other data; empty where no figure was found.
    """

    rule: Mapping[str, Any]
    net: str = "resnet"
    optimizer: Mapping[str, Any] | None = None
    published: str = ""


SGD: Mapping[str, Any] = {
    "name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "kwargs": {"nesterov": True},
}  # fmt: skip
BP: Mapping[str, Any] = {"name": "auglocal", "modules": 1}
CIFAR = "CIFAR-10, ResNet-110"
ROWS: dict[str, Row] = {
    "bp": Row(BP, published=f"94.61, {CIFAR}"),
    **{f"auglocal-{deep}": Row({"name": "auglocal", "depth": deep, "modules": "paper"}) for deep in range(1, 5)},
    "auglocal-5": Row({"name": "auglocal", "depth": 5, "modules": "paper"}, published=f"93.96 at depth 6, {CIFAR}"),
    "dgl": Row({"name": "dgl", "modules": "each"}, published=f"93.50 with 2 modules, {CIFAR}"),
    "predsim": Row({"name": "predsim", "modules": "each"}, published=f"74.95, {CIFAR}"),
    "mlp": Row(BP, "mlp"),
    "tpsgd": Row({"name": "tpsgd"}, "mlp", TPSGD, "within 5 % of backpropagation"),
    "forward-forward": Row({"name": "forward-forward"}, "mlp", FORWARD_FORWARD, "98.64, MNIST"),
    "phyll": Row({"name": "phyll"}, "mlp", PHYLL),
    "counter-current": Row({"name": "counter-current"}, "mlp", COUNTER_CURRENT),
    "cnn": Row(BP, "cnn"),
    "noprop": Row({"name": "noprop"}, "cnn", NOPROP, "99.54, MNIST; 80.54, CIFAR-10"),
}
MAIN = list(ROWS)[: list(ROWS).index("predsim") + 1]


NETS: dict[str, dict[str, Any]] = {
    "resnet": {
        "name": "resnet", "dtype": "float32", "depth": 20, "width": 8, "norm": "batch", "shortcut": "convolution",
    },
    "mlp": {"name": "mlp", "dtype": "float32", "hidden": [500, 500, 500]},
    "cnn": {"name": "cnn", "dtype": "float32", "filters": [16, 32], "dense": 128},
}  # fmt: skip


def network(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a network's section."""
    return NETS[name] | ({"depth": arguments.depth, "width": arguments.width} if name == "resnet" else {})


def images(size: int, examples: int) -> Dataset:
    """Return Fashion-MNIST with the first so many training images, averaged to `size` x `size`."""
    data = registry.load({"name": "fashion-mnist"}, seed=0)
    assert data.scale is not None
    mean, std = data.scale
    ways = 28 // size

    def smaller(x: np.ndarray) -> np.ndarray:
        tiles = x.reshape(len(x), size, ways, size, ways).astype(np.float32)
        made: np.ndarray = (tiles.mean((2, 4)) / 255 - mean) / std
        return made[:, None]

    return data._replace(
        train_x=smaller(data.train_x[:examples]),
        train_y=data.train_y[:examples],
        test_x=smaller(data.test_x),
        input_shape=(1, size, size),
        scale=None,
    )


def settings(row: Row, seed: int, arguments: argparse.Namespace) -> Settings:
    """Return the training of a row, before it is known how many modules its rule makes."""
    return Settings(
        model=network(row.net, arguments),
        seed=seed,
        model_seed=seed,
        rule=row.rule,
        shares=(),
        batch_size=arguments.batch,
        steps=arguments.examples * arguments.epochs // arguments.batch,
        evaluate_batch=500,
        optimizer=row.optimizer or SGD,
        learning_rate={"name": "cosine", "warmup_steps": 20, "final": 0.0},
        queue=1,
    )


def train(plain: Settings, data: Dataset) -> dict[str, float]:
    """Train once; return the accuracy in percent, the number of modules, and seconds of this process."""
    count = len(build(plain, data).modules)
    workers = InlineWorkers(plain._replace(shares=(count,)), data)
    began = time.process_time()
    for number in range(1, plain.steps + 1):
        workers.step(number)
    seconds = time.process_time() - began
    accuracy = workers.evaluate(plain.steps)["test/accuracy"]
    return {"accuracy": 100 * accuracy, "modules": count, "seconds": seconds}


def key(name: str, plain: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what tells runs apart."""
    given = {name: getattr(arguments, name) for name in ("size", "examples", "epochs", "batch")}
    return {
        "row": name,
        "rule": dict(plain.rule),
        "seed": plain.seed,
        "model": dict(plain.model),
        "optimizer": dict(plain.optimizer),
        **given,
    }


def table(found: Sequence[Mapping[str, Any]], rows: Sequence[str]) -> list[str]:
    """Return the lines of what there is, in Markdown: mean and sample deviation over seeds."""
    lines = ["| rule | network | modules | seeds | accuracy | seconds | published |", "|---|---|---|---|---|---|---|"]
    for name in rows:
        runs = [run for run in found if run["row"] == name]
        if runs:
            accuracies = [run["accuracy"] for run in runs]
            spread = f" +- {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
            seconds = statistics.median(run["seconds"] for run in runs)
            lines.append(
                f"| {name} | {ROWS[name].net} | {runs[0]['modules']} | {len(runs)} | "
                f"{statistics.mean(accuracies):.2f}{spread} | {seconds:.0f} | {ROWS[name].published or '-'} |"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="results, a line of JSON each")
    parser.add_argument("--rows", nargs="+", default=MAIN, choices=list(ROWS))
    for name, default in (("seeds", 3), ("first-seed", 0), ("examples", 20_000), ("epochs", 5), ("batch", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("depth", 20), ("width", 8), ("size", 14)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--table", action="store_true", help="print what there is and train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    done = [json.loads(line) for line in lines]
    data = None
    found = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):  # all rows of a seed, then more
        for name in arguments.rows:
            plain = settings(ROWS[name], seed, arguments)
            wanted = key(name, plain, arguments)
            known = [run for run in done if wanted.items() <= run.items()]
            if not known and not arguments.table:
                data = data or images(arguments.size, arguments.examples)
                known = [{**wanted, **train(plain, data)}]
                with arguments.out.open("a") as file:
                    file.write(json.dumps(known[0]) + "\n")
                print(f"{name}, seed {seed}: {known[0]['accuracy']:.2f} in {known[0]['seconds']:.0f} s", flush=True)
            found += known[:1]
    print("\n".join(table(found, arguments.rows)))


if __name__ == "__main__":
    main()
