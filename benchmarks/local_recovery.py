"""What the loss of a worker costs a lossless run of local learning: seconds to the first batch after it, and the bits.

A ResNet-14 of width 8 on digits in two modules, two workers on a local Ray cluster; after batch KILL worker 1 is killed
outright. Either all start again (`strategy.recovery: together`), or that one does (`alone`). Times count from the kill:

    noticed    the driver is told that the worker is gone
    started    all workers' processes are there again
    further    the first batch is done that was not done before
    redone     batches trained twice: by all workers side by side, or by the lost one
    held       MB of sent batches that worker 0 holds at most, for a worker that comes again alone

`ms / batch` is of the batches before the kill, checkpoints included. Every run must end with the bits of one process
that nobody disturbed (`cluster.workers: 0`), or the script fails.

    python -m benchmarks.local_recovery [--every 1 5 20 100] [--steps 120] [--kill 79] [--repeats 1]
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import orchestrator
from orchestrator.checkpoints import CheckpointStore
from orchestrator.life import Trial
from orchestrator.rundir import RunDirectory


def config(root: str, workers: int, every: int, steps: int, recovery: str = "together") -> dict[str, Any]:
    """Return the experiment."""
    return {
        "name": "local-recovery",
        "seed": 1,
        "data": {"name": "digits"},
        "model": {"name": "resnet", "depth": 14, "width": 8, "norm": "batch", "shortcut": "convolution"},
        "strategy": {
            "kind": "local-learning", "modules": 2, "steps": steps, "batch_size": 64, "recovery": recovery,
            "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        },
        "cluster": {"workers": workers, "address": "local", "resources_per_worker": {"CPU": 0.5}},
        "tracking": {"enabled": False},
        "checkpoint": {"every": every},
        "evaluate": {"every": steps, "batch_size": 500},
        "storage": {"root": root},
    }  # fmt: skip


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Return the whole state of a run's last checkpoint, by name."""
    newest = CheckpointStore(folder / "checkpoints", 3).newest()
    assert newest is not None and newest.model is not None
    trees = {"model": newest.model, **newest.server}
    return {f"{tree}/{name}": tensor for tree, tensors in trees.items() for name, tensor in tensors.items()}


def disturbed(root: str, name: str, every: int, steps: int, kill: int, recovery: str) -> tuple[Path, dict[str, float]]:
    """Run with a kill; return where, and what it took."""
    done_s: dict[int, float] = {}
    killed: list[float] = []

    def on_step(report: Any, directory: RunDirectory) -> bool:
        done_s[report.state.step] = time.time()
        if report.state.step == kill:
            pids = [event["pid"] for event in directory.events() if event["kind"] == "worker_started"]
            killed.append(time.time())
            os.kill(pids[-1], signal.SIGKILL)
        return False

    path = Path(root) / name
    result = orchestrator.run(
        config(root, 2, every, steps, recovery), quiet=True, trial=Trial(path, 0, {}, on_step=on_step)
    )
    events = list(RunDirectory.open(result.run_dir).events())
    kind = "gang_restarted" if recovery == "together" else "rank_restarted"
    (restart,) = [event for event in events if event["kind"] == kind]
    told = {event["kind"]: event["time"] - killed[0] for event in events}  # the last of each kind
    reached = max(step for step, done in done_s.items() if done <= restart["time"])
    return result.run_dir, {
        "ms / batch": 1000 * (done_s[kill] - done_s[10]) / (kill - 10),
        "noticed": restart["time"] - killed[0],
        "started": told["worker_started" if recovery == "together" else "worker_replaced"],
        "further": done_s[reached + 1] - killed[0],
        "redone": float(reached - restart["from_step"]) if recovery == "together" else _replayed(events),
        "held": result.metrics.get("workers/held_bytes_0", 0.0) / 1e6,
    }


def _replayed(events: list[dict[str, Any]]) -> float:
    (recovered,) = [event for event in events if event["kind"] == "rank_recovered"]
    return float(recovered["replayed"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, nargs="+", default=[1, 5, 20, 100], help="batches between checkpoints")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--kill", type=int, default=79, help="after which batch")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        expected = state(orchestrator.run(config(root, 0, 1000, arguments.steps), quiet=True).run_dir)
        cases = [(every, recovery) for every in arguments.every for recovery in ("together", "alone")]
        for index, (every, recovery) in enumerate(cases):
            found = []
            for repeat in range(arguments.repeats):
                name = f"{recovery}-{every}-{repeat}"
                folder, took = disturbed(root, name, every, arguments.steps, arguments.kill, recovery)
                mine = state(folder)
                assert mine.keys() == expected.keys()
                differing = [name for name, tensor in mine.items() if not torch.equal(tensor, expected[name])]
                assert not differing, f"other bits than undisturbed: {differing[:3]}"
                found.append(took)
            if index == 0:
                print("| checkpoint every | recovery | " + " | ".join(found[0]) + " | bits |")
                print("|---" * (len(found[0]) + 3) + "|")
            figures = [_spread([took[name] for took in found]) for name in found[0]]
            print(f"| {every} | {recovery} | " + " | ".join(figures) + " | equal |", flush=True)


def _spread(values: list[float]) -> str:
    """Return the median, and least to most where there are several."""
    middle = f"{statistics.median(values):.3g}"
    return middle if min(values) == max(values) else f"{middle} ({min(values):.3g}-{max(values):.3g})"


if __name__ == "__main__":
    main()
