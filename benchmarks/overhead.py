"""What orchestration costs: seconds per round of this system over a plain PyTorch loop doing the same work.

Both train the same clients of the same rounds on the same batches, in as many processes, with the same optimizer
step. The plain loop is two processes that keep the data, receive the model through a pipe of shared memory, train
their half of the cohort and return one weighted sum: what one would write by hand with no concern for failures,
resuming, records or reports. This system runs whole: Ray workers, checkpoints, run directory, MLflow, report.

The two alternate in segments within one process group. The figure is the median over segments of the ratio of
the median seconds per round, with its spread. Start-up is left out of the ratio and printed beside it.

    python -m benchmarks.overhead [--segments 5] [--rounds 8]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp

import orchestrator
from benchmarks.workloads import images
from orchestrator.config import load_experiment
from orchestrator.preparing import prepare
from strategies.federated.sampling import uniform
from strategies.seeds import generator, integer

CLIENTS, PER_CLIENT, COHORT, BATCH, LR, WORKERS = 200, 100, 20, 10, 0.05, 2


def config(root: Path, rounds: int) -> dict[str, Any]:
    """The experiment: a CNN of 545,098 parameters on 200 clients with 100 images 3 x 32 x 32 each."""
    return {
        "name": "overhead",
        "seed": 1,
        "data": {
            "target": "benchmarks.workloads:images",
            "kwargs": {"clients": CLIENTS, "per_client": PER_CLIENT},
            "partition": {"kind": "iid", "clients": CLIENTS},
        },
        "model": {"name": "cnn"},
        "strategy": {
            "kind": "federated",
            "algorithm": {"name": "fedavg", "rounds": rounds, "cohort": COHORT},
            "client": {"epochs": 1, "batch_size": BATCH, "optimizer": {"name": "sgd", "lr": LR}},
        },
        "cluster": {"workers": WORKERS},
        "evaluate": {"every": 10_000},
        "storage": {"root": str(root)},
    }


def plain_worker(pipe: Connection, fused: bool) -> None:
    """One process of the plain loop: `(round, clients, model) -> (weighted sum, weight)` until told None."""
    torch.set_num_threads(1)
    prepared = prepare(load_experiment(config(Path("unused"), 1)).experiment)
    model, data = prepared.model, prepared.dataset
    x_all, y_all = torch.from_numpy(np.asarray(data.train_x)), torch.from_numpy(np.asarray(data.train_y))
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        round_, clients, received = task
        total, weight = [torch.zeros_like(tensor) for tensor in received], 0.0
        for client in clients:
            with torch.no_grad():
                for parameter, tensor in zip(model.parameters(), received, strict=True):
                    parameter.copy_(tensor)
            rows = torch.from_numpy(prepared.partition.rows(client))
            x, y = x_all[rows], y_all[rows]
            optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=fused or None)
            torch.manual_seed(integer(1, "client", round_, client))
            order = torch.from_numpy(generator(1, "batches", round_, client).permutation(len(x)))
            for start in range(0, len(x), BATCH):
                chosen = order[start : start + BATCH]
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
            with torch.no_grad():
                for sum_, parameter, tensor in zip(total, model.parameters(), received, strict=True):
                    sum_ += len(x) * (parameter - tensor)
            weight += len(x)
        pipe.send((total, weight))


class PlainLoop:
    """The plain loop's parent process."""

    def __init__(self, fused: bool) -> None:
        context = mp.get_context("spawn")
        pairs = [context.Pipe() for _ in range(WORKERS)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=plain_worker, args=(theirs, fused), daemon=True) for _, theirs in pairs
        ]
        for process in self.processes:
            process.start()
        for pipe in self.pipes:
            assert pipe.recv() == "ready"
        prepared = prepare(load_experiment(config(Path("unused"), 1)).experiment)
        self.initial = [parameter.detach().clone() for parameter in prepared.model.parameters()]

    def run(self, rounds: int) -> tuple[list[float], list[torch.Tensor]]:
        """Train from scratch; return the seconds of each round and the final model."""
        model, seconds = [tensor.clone() for tensor in self.initial], []
        for round_ in range(1, rounds + 1):
            began = time.perf_counter()
            cohort = uniform(CLIENTS, COHORT, generator(1, "cohort", round_))
            for index, pipe in enumerate(self.pipes):
                pipe.send((round_, cohort[index::WORKERS], model))
            parts = [pipe.recv() for pipe in self.pipes]
            weight = sum(part[1] for part in parts)
            model = [t + sum(part[0][i] for part in parts) / weight for i, t in enumerate(model)]
            seconds.append(time.perf_counter() - began)
        return seconds, model

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(10)


def same_after_one_round(root: Path, loop: PlainLoop) -> float:
    """Return the largest difference of a weight after one round; later rounds magnify what rounding begins."""
    weights = orchestrator.run(config(root, 1), quiet=True).weights()
    _, model = loop.run(1)
    return max(float((a - b).abs().max()) for a, b in zip(weights.values(), model, strict=True))


def system(root: Path, rounds: int, fold_block: int | None) -> tuple[list[float], float, dict[str, float]]:
    """Run this system; return the seconds of each round, of all the rest, and the time split."""
    settings = config(root, rounds)
    settings["strategy"]["fold_block"] = fold_block
    began = time.perf_counter()
    result = orchestrator.run(settings, quiet=True)
    whole = time.perf_counter() - began
    table = result.history().to_pylist()
    clock = {row["step"]: row["wall_s"] for row in table}
    seconds = [clock[step] - clock[step - 1] for step in range(1, rounds + 1)]
    split = {
        name: statistics.median(row["value"] for row in table if row["scope"] == "time" and row["name"] == name)
        for name in ("compute_s", "wire_s", "wait_s", "round_s")
    }
    return seconds, whole - sum(seconds), split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    images(2, 2)
    loop = PlainLoop(fused=True)
    variants = {"default": None, f"fold_block {COHORT // WORKERS}": COHORT // WORKERS}
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        print(f"largest weight difference after one round: {same_after_one_round(Path(folder), loop):.1e}")
        for segment in range(arguments.segments):
            for name, fold_block in variants.items():
                seconds, rest, split = system(Path(folder), arguments.rounds, fold_block)
                plain, _ = loop.run(arguments.rounds)
                # The first round of a segment pays for cold caches on either side; it stays out of both medians.
                mine, theirs = statistics.median(seconds[1:]), statistics.median(plain[1:])
                ratios[name].append(mine / theirs)
                parts = "  ".join(f"{part} {value:.3f}" for part, value in split.items())
                print(
                    f"segment {segment}  {name}: ours {mine:.3f} s/round, plain {theirs:.3f}, "
                    f"ratio {ratios[name][-1]:.3f}  start and end {rest:.1f} s  ({parts})",
                    flush=True,
                )
    loop.close()
    for name, values in ratios.items():
        print(f"{name}: ratio median {statistics.median(values):.3f} (min {min(values):.3f}, max {max(values):.3f})")


if __name__ == "__main__":
    main()
