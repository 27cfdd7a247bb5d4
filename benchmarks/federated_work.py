"""W1 and W2, the work that `benchmarks.federated_speed` times, and a tiny one to try it, as experiment and as files.

The experiment is what this system runs. The task holds the same arrays, weights, partition, cohorts and orders of
examples, taken from what the experiment comes to, for sides that know nothing of this project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from orchestrator.config import load_experiment
from orchestrator.preparing import prepare
from strategies.federated.sampling import uniform
from strategies.seeds import generator
from trainers import modules

SEED, BATCH, WORKERS = 1, 10, 2


class Work(NamedTuple):
    """One piece of work: FedAvg, one epoch of SGD in batches of 10.

    Args:
        images: arguments of `benchmarks.workloads.images`; the noise leaves the test accuracy something to differ in.
        model: the experiment's `model` section. cohort: clients a round. lr: of SGD.
    """

    name: str
    images: dict[str, Any]
    model: dict[str, Any]
    cohort: int
    lr: float

    def experiment(self, root: Path, rounds: int, tuned: bool = False) -> dict[str, Any]:
        """Return the experiment: the work itself, and all else at its default, unless tuned to the two workers.

        Tuned, clients are folded in as many blocks as there are workers, where the default leaves work for more.
        """
        clients = self.images["clients"]
        tuning = {"fold_block": self.cohort // WORKERS} if tuned else {}
        return {
            "name": f"speed-{self.name.lower()}",
            "seed": SEED,
            "data": {
                "target": "benchmarks.workloads:images",
                "kwargs": self.images,
                "partition": {"kind": "iid", "clients": clients},
            },
            "model": self.model,
            "strategy": {
                "kind": "federated",
                "algorithm": {"name": "fedavg", "rounds": rounds, "cohort": self.cohort},
                "client": {"epochs": 1, "batch_size": BATCH, "optimizer": {"name": "sgd", "lr": self.lr}},
                **tuning,
            },
            "cluster": {"workers": WORKERS},
            "evaluate": {"every": 1_000_000},
            "storage": {"root": str(root)},
        }

    def write_task(self, folder: Path, rounds: int) -> Path:
        """Write the task that `benchmarks.peers.task` reads; return its folder."""
        prepared = prepare(load_experiment(self.experiment(folder, rounds)).experiment)
        assert prepared.partition is not None
        folder.mkdir(parents=True)
        data, clients = prepared.dataset, prepared.partition.num_clients
        for name in ("train_x", "train_y", "test_x", "test_y"):
            np.save(folder / name, np.ascontiguousarray(getattr(data, name)))
        rows = np.stack([prepared.partition.rows(client) for client in range(clients)])
        cohorts = [uniform(clients, self.cohort, generator(SEED, "cohort", round_ + 1)) for round_ in range(rounds)]
        orders = [
            [generator(SEED, "batches", round_ + 1, client).permutation(rows.shape[1]) for client in cohort]
            for round_, cohort in enumerate(cohorts)
        ]
        np.save(folder / "rows", rows)
        np.save(folder / "cohorts", np.array(cohorts))
        np.save(folder / "orders", np.array(orders))
        weights = modules.snapshot(prepared.model)
        np.savez(folder / "weights", **{name: tensor.contiguous().numpy() for name, tensor in weights.items()})
        settings = {"model": self.model["name"], "lr": self.lr, "batch_size": BATCH}
        (folder / "task.json").write_text(json.dumps(settings))
        return folder


W1 = Work("W1", {"clients": 200, "per_client": 100, "signal": 0.5, "noise": 1.0}, {"name": "cnn"}, 20, 0.05)
W2 = Work(
    "W2",
    {"clients": 1000, "per_client": 20, "channels": 1, "side": 28, "signal": 0.12, "noise": 1.0},
    {"name": "mlp", "hidden": [64]},
    100,
    0.3,
)
TINY = W2._replace(name="tiny", images={**W2.images, "clients": 8}, cohort=4)
WORKS = {work.name: work for work in (W1, W2, TINY)}
