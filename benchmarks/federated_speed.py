"""Seconds per federated round: this system, Flower, pfl-research and a plain PyTorch loop, at the same work.

W1: 200 clients with 100 images of 3 x 32 x 32, 20 of them a round, a CNN of 545,098 parameters.
W2: 1000 clients with 20 images of 28 x 28, 100 of them a round, an MLP 784-64-10.
One epoch of SGD in batches of 10 on either. All sides start from the same weights and train the same clients on the
same batches in every round, in two processes or actors of one thread each (`benchmarks.peers` says how each is set
up). This system runs whole: Ray workers, run directory, checkpoints every five rounds, MLflow, report.

Sides: `ours`; `plain`, `pfl` and `flower` as a user writes them, with torch's defaults; and the same with `-tuned`:
the model channels-last, torch's fused SGD step and Flower's server polling every 10 ms. (Ours lays its own `cnn`
channels-last and takes the fused step by itself; `ours-tuned` says that there are two workers, `strategy.fold_block`.)

First every side makes one round, and its weights are compared with ours. Then the sides alternate in segments, each of
which starts everything anew; start-up, the first two rounds of a segment (cold caches; pfl evaluates in its first) and
the last (ours evaluates and ends in it) are in no figure. Per side and segment: the median of the seconds of a round,
and the mean, which has ours pay for its checkpoints. Ratios are of medians within a segment; of several segments the
median, with the least and the most. Last comes the test accuracy after the last round, of 1000 examples, and how far
the weights are from the first side's by then: what rounding begins (sides sum in different orders, and convolutions of
another layout round differently), later rounds magnify.

    python -m benchmarks.federated_speed --peer-python PEERS/bin/python [--work W1 W2] [--segments 5] [--rounds 12]

Peers pin other versions than this project and live in their own virtual environment:

    python -m venv PEERS && PEERS/bin/pip install torch==2.13.0 -c constraints.txt
    PEERS/bin/pip install "flwr[simulation]" pfl torch==2.13.0
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.federated_work import WORKS, Work
from benchmarks.workloads import ONE_THREAD

SIDES = ("ours", "ours-tuned", "plain", "plain-tuned", "pfl", "pfl-tuned", "flower", "flower-tuned")
FIRST, LAST = 2, 1
"""Rounds at the start and at the end of a segment that are in no figure."""
LIMIT_S = 1800.0


class Segment(NamedTuple):
    """What one side came to: seconds of each round, test examples got right, final weights, versions."""

    seconds: list[float]
    correct: int
    weights: dict[str, np.ndarray]
    versions: dict[str, str]

    @property
    def counted(self) -> list[float]:
        """The seconds of the rounds that are in the figures."""
        return self.seconds[FIRST : len(self.seconds) - LAST]


def ours(work: Work, root: Path, rounds: int, tuned: bool) -> Segment:
    """Run this system."""
    import orchestrator

    result = orchestrator.run(work.experiment(root, rounds, tuned), quiet=True)
    table = result.history().to_pylist()
    clock = {row["step"]: row["wall_s"] for row in table}
    seconds = [clock[step] - clock[step - 1] for step in range(1, rounds + 1)]
    names = ("torch", "ray", "mlflow")
    versions = {name: version(name) for name in names} | {"python": sys.version.split()[0]}
    weights = {name: tensor.numpy() for name, tensor in result.weights().items()}
    return Segment(seconds, round(1000 * result.metrics["test/accuracy"]), weights, versions)


def other(side: str, task: Path, rounds: int, peer_python: str) -> Segment:
    """Run another side in processes of its own.

    Raises:
        RuntimeError: when it fails, with the end of what it wrote.
    """
    name, _, tuned = side.partition("-")
    python = sys.executable if name == "plain" else peer_python
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"] if name == "pfl" else []
    command = [python, *launcher, "-m", f"benchmarks.peers.{name}_side", str(task), str(rounds), tuned or "default"]
    here = str(Path(__file__).parents[1])
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": here}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not said or "correct" not in said[-1]:
        raise RuntimeError(f"{side} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    with np.load(said[-1]["weights"]) as arrays:
        weights = dict(arrays)
    return Segment([line["seconds"] for line in said[:-1]], said[-1]["correct"], weights, said[-1]["versions"])


def compare(work: Work, sides: Sequence[str], peer_python: str, segments: int, rounds: int) -> dict[str, Any]:
    """Run all sides at one piece of work, print what they come to, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root, task = Path(folder) / "runs", work.write_task(Path(folder) / "task", rounds)

        def run(side: str, rounds: int) -> Segment:
            if side.startswith("ours"):
                return ours(work, root, rounds, tuned=side != "ours")
            return other(side, task, rounds, peer_python)

        first = {side: run(side, 1) for side in sides}
        for side, segment in first.items():
            versions = "  ".join(f"{name} {value}" for name, value in sorted(segment.versions.items()))
            change = difference(segment.weights, first[sides[0]].weights)
            print(f"{work.name} {side}: {versions}; largest weight difference after one round {change:.1e}", flush=True)
        medians: dict[str, list[float]] = {side: [] for side in sides}
        means: dict[str, list[float]] = {side: [] for side in sides}
        correct: dict[str, set[int]] = {side: set() for side in sides}
        last: dict[str, Segment] = {}
        for index in range(segments):
            for side in sides if index % 2 == 0 else sides[::-1]:
                segment = last[side] = run(side, rounds)
                medians[side].append(statistics.median(segment.counted))
                means[side].append(statistics.mean(segment.counted))
                correct[side].add(segment.correct)
                figures = f"{medians[side][-1]:.4f} s/round (mean {means[side][-1]:.4f})"
                print(f"{work.name} segment {index}  {side}: {figures}  correct {segment.correct}", flush=True)
    print(f"\n{work.name}: {rounds - FIRST - LAST} rounds counted in each of {segments} segments")
    summary = {}
    for side in sides:
        over = ratios(medians[side], medians[sides[0]])
        change = difference(last[side].weights, last[sides[0]].weights)
        summary[side] = {"seconds": statistics.median(medians[side]), "ratio": over, "correct": sorted(correct[side])}
        print(
            f"{side:>14}: {statistics.median(medians[side]):.4f} s/round (mean {statistics.median(means[side]):.4f}), "
            f"{over[0]:.2f} times {sides[0]} ({over[1]:.2f} to {over[2]:.2f}), of means "
            f"{ratios(means[side], means[sides[0]])[0]:.2f}; correct of 1000: {summary[side]['correct']}, "
            f"largest weight difference after {rounds} rounds {change:.1e}",
            flush=True,
        )
    return summary


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Return the largest difference of a weight between two models of the same names."""
    assert a.keys() == b.keys(), (a.keys(), b.keys())
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def ratios(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Return median, least and most of the ratios, segment by segment."""
    values = [a / b for a, b in zip(one, other, strict=True)]
    return statistics.median(values), min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="of the environment that has flwr and pfl")
    parser.add_argument("--work", nargs="+", default=["W1", "W2"], choices=WORKS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="ratios are over the first")
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=12, help="of a segment, of which the outer three do not count")
    arguments = parser.parse_args()
    if arguments.rounds <= FIRST + LAST:
        parser.error(f"--rounds is {arguments.rounds}, expected more than {FIRST + LAST}")
    for name in arguments.work:
        compare(WORKS[name], arguments.sides, arguments.peer_python, arguments.segments, arguments.rounds)


if __name__ == "__main__":
    main()
