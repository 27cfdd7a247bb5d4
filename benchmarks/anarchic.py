"""Anarchic federated learning on label-skewed MNIST: do clients that come as they like learn what a cohort learns?

Twenty clients hold digits of p classes each. Half of them are five times as fast as the others, so that five of six
updates come from them; each participation makes 1 to 10 local steps, and updates arrive several versions late. Beside
AFA-CD and AFA-CS stands FedAvg in synchronous rounds of as many clients with the same random steps: the work of all
clients together is the same. AFA's server rate is 0.03; with 0.11, which makes a step as long as FedAvg's, what is late
disturbs both more where each client has one digit. The model is logistic regression. Figures are means over seeds of
the accuracy over the last tenth of the steps, since single values jump; the spread is the least and the most.

The second table counts the server steps to an accuracy, for buffers m of AFA-CD and for populations M of AFA-CS whose
memory averages over all of them.

    python -m benchmarks.anarchic [--steps 600] [--seeds 3] [--plot docs/anarchic.svg]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orchestrator

CLIENTS, BUFFER, CLIENT_LR, SERVER_LR = 20, 5, 0.02, 0.03
SKEWS = (1, 2, 5, 10)
ALGORITHMS = ("fedavg", "afa-cd", "afa-cs")
GOAL = 0.85


def config(
    algorithm: str, classes: int, steps: int, seed: int, *, buffer: int = BUFFER, clients: int = CLIENTS
) -> dict[str, Any]:
    """Return one run."""
    rule: dict[str, Any] = {"name": algorithm, "rounds": steps}
    if algorithm == "fedavg":
        rule |= {"cohort": buffer, "weighting": "uniform"}
    else:
        rule |= {"server_lr": SERVER_LR}
    return {
        "name": "anarchic",
        "seed": seed,
        "data": {
            "name": "mnist",
            "partition": {"kind": "shards", "clients": clients, "shards_per_client": classes},
        },
        "model": {"name": "logistic"},
        "strategy": {
            "algorithm": rule,
            "pacing": {"kind": "synchronous"} if algorithm == "fedavg" else {"kind": "anarchic", "buffer": buffer},
            "client": {"batch_size": 32, "optimizer": {"name": "sgd", "lr": CLIENT_LR}},
            "behaviour": {
                "speed": {"kind": "classes", "classes": [{"speed": 5}, {"speed": 1}]},
                "steps": {"kind": "uniform", "low": 1, "high": 10},
            },
        },
        "cluster": {"workers": 0},
        "evaluate": {"every": max(1, steps // 100)},
        "checkpoint": {"every": steps},
        "tracking": {"enabled": False},
    }


def curve(root: Path, settings: Mapping[str, Any]) -> dict[int, float]:
    """Run it; return the test accuracy by step."""
    result = orchestrator.run(dict(settings), root=root, quiet=True)
    rows = result.history().to_pylist()
    return {row["step"]: row["value"] for row in rows if (row["scope"], row["name"]) == ("test", "accuracy")}


def late(accuracy: Mapping[int, float]) -> float:
    """Return the mean accuracy over the last tenth of the steps."""
    last = max(accuracy)
    return statistics.mean(value for step, value in accuracy.items() if step > 0.9 * last)


def first(accuracy: Mapping[int, float], goal: float) -> float:
    """Return the first step with at least that accuracy; infinity when there is none."""
    return min((step for step, value in accuracy.items() if value >= goal), default=float("inf"))


def spread(values: Sequence[float], style: str) -> str:
    """Return `median (least to most)`."""
    return f"{statistics.mean(values):{style}} ({min(values):{style}} to {max(values):{style}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    curves: dict[tuple[str, int], list[dict[int, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        print("| classes a client | " + " | ".join(ALGORITHMS) + " |\n|---|" + "---|" * len(ALGORITHMS))
        for classes in SKEWS:
            for algorithm in ALGORITHMS:
                curves[algorithm, classes] = [
                    curve(root, config(algorithm, classes, arguments.steps, seed)) for seed in range(arguments.seeds)
                ]
            cells = [spread([late(one) for one in curves[algorithm, classes]], ".2%") for algorithm in ALGORITHMS]
            print(f"| {classes} | " + " | ".join(cells) + " |", flush=True)
        speedups(root, arguments.steps, arguments.seeds)
    if arguments.plot:
        plot(curves, arguments.plot)


def speedups(root: Path, steps: int, seeds: int) -> None:
    """Print the steps to the goal over m and over M."""
    print(f"\n| AFA-CD, buffer m | steps to {GOAL:.0%}, 10 classes a client |\n|---|---|")
    for buffer in (1, 2, 4, 8, 16):
        found = [first(curve(root, config("afa-cd", 10, steps, seed, buffer=buffer)), GOAL) for seed in range(seeds)]
        print(f"| {buffer} | {spread(found, '.0f')} |", flush=True)
    print(f"\n| AFA-CS, clients M | accuracy, 2 classes a client, buffer {BUFFER} |\n|---|---|")
    for clients in (10, 20, 40, 80):
        found = [late(curve(root, config("afa-cs", 2, steps, seed, clients=clients))) for seed in range(seeds)]
        print(f"| {clients} | {spread(found, '.2%')} |", flush=True)


def plot(curves: Mapping[tuple[str, int], Sequence[Mapping[int, float]]], path: Path) -> None:
    """Draw the accuracy over the steps, one panel a skew, the mean over seeds."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(SKEWS), figsize=(11, 2.8), sharey=True, layout="constrained")
    for panel, classes in zip(panels, SKEWS, strict=True):
        for algorithm in ALGORITHMS:
            runs = curves[algorithm, classes]
            steps = sorted(runs[0])
            panel.plot(steps, [statistics.mean(run[step] for run in runs) for step in steps], label=algorithm, lw=1.2)
        panel.set(title=f"{classes} class{'es' * (classes > 1)} a client", xlabel="server step", ylim=(0, 1))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    panels[-1].legend(loc="lower right", frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
