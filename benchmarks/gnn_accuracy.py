"""What history, shuffling and chunks cost in accuracy: graph pipelines beside exact graph parallelism, same seeds.

Accuracy is that on the public test vertices at the epoch of the best validation accuracy; every epoch is evaluated,
exactly. All ranks are in this process, one thread; the results are those of a gang, bit for bit.

    python -m benchmarks.gnn_accuracy [--data cora citeseer pubmed] [--rows gcn-2 gcnii-16 ...] [--seeds 0 1 ...]

Every mode is also compared with the first one seed by seed. Rows: MODEL-LAYERS of gcn, gcnii, resgcn. Needs the
graphs: see docs/data.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
from itertools import product
from typing import Any

import torch

from trainers import models
from trainers.data.graphs import registry
from trainers.data.graphs.base import GraphData
from trainers.graph.convolutions import graph_chain
from trainers.graph.inline import InlineGraphPipeline
from trainers.graph.settings import Settings

MODES: dict[str, dict[str, Any]] = {
    "exact": {"stages": 1, "slots": 1},
    "pipeline": {"stages": 2, "slots": 8},
    "no history": {"stages": 2, "slots": 8, "refresh": 0},
    "refresh 1": {"stages": 2, "slots": 8, "refresh": 1},
    "no shuffle": {"stages": 2, "slots": 8, "shuffle": False},
    "no correction": {"stages": 2, "slots": 8, "correction": 1.0},
}
TRAINING: dict[str, dict[str, Any]] = {
    "gcn": {"hidden": 16, "dropout": 0.5, "lr": 0.01, "decay": 5e-4},
    "gcnii": {"hidden": 64, "dropout": 0.6, "lr": 0.01, "decay": 0.01},
    "resgcn": {"hidden": 64, "dropout": 0.5, "lr": 0.01, "decay": 5e-4},
}


def one(data: GraphData, row: str, mode: str, seed: int, epochs: int) -> float:
    """Train once; return the test accuracy at the best validation accuracy."""
    name, _, layers = row.partition("-")
    how = TRAINING[name]
    model = {"name": name, "layers": int(layers), "hidden": how["hidden"], "dropout": how["dropout"]}
    model["dtype"] = "float32"
    built = models.build(model, input_shape=(data.num_features,), num_classes=data.num_classes, seed=seed)
    count = len(graph_chain(built).layers)
    stages = MODES[mode]["stages"]
    plain: dict[str, Any] = {
        "ways": 1, "chunking": "metis", "shuffle": True, "refresh": 23, "correction": 2.0, "recompute": False,
        "kernel": "auto", "clip_norm": None, "epochs": epochs, "patience": None, "model": model, "seed": seed,
        "model_seed": seed, "layers": (count,) if stages == 1 else (count // 2, count - count // 2),
        "optimizer": {"name": "adam", "lr": how["lr"], "weight_decay": how["decay"]},
        "learning_rate": {"name": "constant", "warmup_steps": 0, "final": 0.0}, **MODES[mode],
    }  # fmt: skip
    ranks = InlineGraphPipeline(Settings(**plain), data)
    best: dict[str, float] = {}
    for epoch in range(1, epochs + 1):
        ranks.epoch(epoch)
        best = ranks.evaluate(epoch)
    return 100 * best["best/test_accuracy"]


def told(found: list[float], exact: list[float]) -> str:
    """Return mean and deviation, and the mean of the seeds' differences from the first mode with its standard error."""
    mean, spread = statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0
    over = [one - other for one, other in zip(found, exact, strict=True)]
    error = statistics.stdev(over) / math.sqrt(len(over)) if len(over) > 1 else 0.0
    return f"{mean:6.2f} +- {spread:4.2f} %  {statistics.fmean(over):+6.2f} +- {error:4.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", default=["cora", "citeseer", "pubmed"])
    parser.add_argument("--rows", nargs="+", default=["gcn-2"])
    parser.add_argument("--modes", nargs="+", default=["exact", "pipeline"], choices=list(MODES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--epochs", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.data:
        data = registry.load({"name": name}, seed=0)
        for row in arguments.rows:
            found: dict[str, list[float]] = {mode: [] for mode in arguments.modes}
            for seed, mode in product(arguments.seeds, arguments.modes):
                found[mode].append(one(data, row, mode, seed, arguments.epochs))
                print(f"  {name} {row} {mode}, seed {seed}: {found[mode][-1]:.2f}", flush=True)
            for mode in arguments.modes:
                line = told(found[mode], found[arguments.modes[0]])
                print(f"{name:<10}{row:<12}{mode:<15}{line}", flush=True)


if __name__ == "__main__":
    main()
