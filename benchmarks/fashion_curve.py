"""Federated averaging on Fashion-MNIST: test accuracy over rounds, drawn from a finished run.

First `orchestrator run examples/fashion_fedavg.yaml`, then `python -m benchmarks.fashion_curve RUN_DIR`, which writes
docs/fashion_fedavg.svg and prints the figures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from orchestrator.rundir import RunDirectory
from orchestrator.trial_run import history

TARGET = 0.85


def main(run_dir: str) -> None:
    """Draw one run."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fashion"  # the same picture for the same figures
    import matplotlib.pyplot as plt

    curve = history(RunDirectory.open(run_dir), "test/accuracy")
    reached = next(step for step, value in curve if value >= TARGET)
    best = max(curve, key=lambda point: point[1])
    print(f"{TARGET:.0%} after round {reached}, best {best[1]:.4f} after round {best[0]}, last {curve[-1][1]:.4f}")
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    axes.plot(*zip(*curve, strict=True), color="#2b6cb0")
    axes.axhline(TARGET, color="#999999", linewidth=0.8, linestyle="--")
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), xlim=(0, curve[-1][0]))
    axes.set_title("Fashion-MNIST, 200 clients, Dirichlet 0.3, 20 a round, CNN", fontsize=10)
    axes.grid(alpha=0.3)
    path = Path(__file__).parents[1] / "docs" / "fashion_fedavg.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main(sys.argv[1])
