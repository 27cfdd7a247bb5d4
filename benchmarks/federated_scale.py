"""What a population costs: seconds per round and the driver's memory from a thousand to a million registered clients.

A cohort of 100 of them trains an MLP in every round, each client on two examples of 16 features that it draws from one
table; only the number of registered clients differs. With `--algorithm scaffold` a state is kept of every client seen;
with `fedbuff` 1000 clients are in flight. Each population runs in a process of its own, the populations take turns in
segments, and the first two rounds and the last of a segment are in no figure.

Two kinds of memory are told apart. *Private* is what the driver alone holds (USS) after the last round: the data set,
its partition and the records of the run. *Peak* is the largest resident size that
the process ever had, the making of the data included, and pages that it shares with Ray's object store. *Start* is
the seconds before the first round, *end* those after the last.

    python -m benchmarks.federated_scale [--populations 1000 10000 100000 1000000] [--segments 3] [--rounds 20]
                                         [--algorithm fedavg]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import orchestrator
from benchmarks.federated_speed import FIRST, LAST, ratios
from orchestrator.engines.rounds import RoundsEngine
from orchestrator.rundir import RunDirectory

COHORT, FEATURES, PER_CLIENT, CLASSES, TABLE = 100, 16, 2, 10, 4096
POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
LIMIT_S = 1800.0


def rows() -> dict[str, Any]:
    """Return a table that stands for the data of all clients."""
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(TABLE, FEATURES)).astype(np.uint8)
    y = rng.integers(CLASSES, size=TABLE).astype(np.int64)
    return {
        "name": "benchmark-rows", "train_x": x, "train_y": y, "test_x": x[:100], "test_y": y[:100],
        "num_classes": CLASSES, "input_shape": (FEATURES,), "scale": (0.5, 0.25),
    }  # fmt: skip


def config(root: Path, clients: int, rounds: int, algorithm: str = "fedavg") -> dict[str, Any]:
    """Return the experiment with so many registered clients."""
    return {
        "name": f"scale-{clients}",
        "seed": 1,
        "data": {
            "target": "benchmarks.federated_scale:rows",
            "partition": {"kind": "drawn", "clients": clients, "examples": PER_CLIENT},
        },
        "model": {"name": "mlp", "hidden": [32]},
        "strategy": {
            "kind": "federated",
            "algorithm": {"name": algorithm, "rounds": rounds, "cohort": min(COHORT, clients)},
            "pacing": {"kind": "buffered", "buffer": COHORT, "concurrency": min(1000, clients)}
            if algorithm == "fedbuff"
            else {"kind": "auto"},
            "client": {"epochs": 1, "batch_size": PER_CLIENT, "optimizer": {"name": "sgd", "lr": 0.05}},
        },
        "evaluate": {"every": 1_000_000},
        "storage": {"root": str(root)},
    }


def measure(clients: int, rounds: int, algorithm: str) -> dict[str, float]:
    """Run one population in this process; return seconds and mebibytes."""
    process, private = psutil.Process(), list[int]()
    steps = RoundsEngine.steps

    def watched(self: RoundsEngine, state: Any) -> Any:
        for report in steps(self, state):
            if report.state.step == rounds:  # reading it takes a while, and this round is in no figure
                private.append(process.memory_full_info().uss)
            yield report

    RoundsEngine.steps = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        result = orchestrator.run(config(Path(folder), clients, rounds, algorithm), quiet=True)
        ended = time.time()
        events = list(RunDirectory.open(result.run_dir).events())
    times = [event["time"] for event in events if event["kind"] == "metrics"]
    counted = np.diff(times)[FIRST : rounds - LAST]
    return {
        "seconds": statistics.median(counted.tolist()),
        "private": private[-1] / 2**20,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "start": times[0] - began,
        "end": ended - times[-1],
    }


def in_process(clients: int, rounds: int, algorithm: str) -> dict[str, float]:
    """Measure one population in a fresh process.

    Raises:
        RuntimeError: when it fails, with the end of what it wrote.
    """
    here = str(Path(__file__).parents[1])
    command = [sys.executable, "-m", "benchmarks.federated_scale", "--only", str(clients)]
    command += ["--rounds", str(rounds), "--algorithm", algorithm]
    environment = os.environ | {"PYTHONPATH": here}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{clients} clients ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(found: Mapping[int, Sequence[Mapping[str, float]]]) -> str:
    """Return the medians over segments, and the ratios to the smallest population."""
    lines = ["clients     s/round  private MiB  peak MiB  start s  end s  times the smallest: s/round, private, peak"]
    smallest = found[min(found)]
    for clients, segments in found.items():
        middle = {key: statistics.median(segment[key] for segment in segments) for key in segments[0]}
        over = []
        for key in ("seconds", "private", "peak"):
            ratio, least, most = ratios([s[key] for s in segments], [s[key] for s in smallest])
            over.append(f"{ratio:.2f} ({least:.2f} to {most:.2f})")
        lines.append(
            f"{clients:<11,} {middle['seconds']:.4f}  {middle['private']:11.0f}  {middle['peak']:8.0f}  "
            f"{middle['start']:7.1f}  {middle['end']:5.1f}  {', '.join(over)}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--populations", type=int, nargs="+", default=list(POPULATIONS))
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--algorithm", choices=("fedavg", "scaffold", "fedbuff"), default="fedavg")
    parser.add_argument("--only", type=int, help="measure one population in this process and print JSON")
    arguments = parser.parse_args()
    if arguments.rounds <= FIRST + LAST:
        parser.error(f"--rounds is {arguments.rounds}, expected more than {FIRST + LAST}")
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.rounds, arguments.algorithm)))
        return
    found: dict[int, list[dict[str, float]]] = {clients: [] for clients in sorted(arguments.populations)}
    for segment in range(arguments.segments):
        for clients in found if segment % 2 == 0 else reversed(found):
            found[clients].append(in_process(clients, arguments.rounds, arguments.algorithm))
            figures = "  ".join(f"{key} {value:.4g}" for key, value in found[clients][-1].items())
            print(f"segment {segment}  {clients:,} clients: {figures}", flush=True)
    print(f"\n{table(found)}")


if __name__ == "__main__":
    main()
