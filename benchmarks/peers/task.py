"""The work that all sides of `benchmarks.federated_speed` do, as files: read here with numpy and torch alone.

A task is a folder. Peers live in another environment than this project, so nothing of the project is imported here:
they get the same arrays, the same initial weights, and for each round the same clients with the same order of their
examples. Left out: anything that differs between the sides, which is all but the model and a client's examples.

    task.json                        see `Task`
    train_x.npy train_y.npy          examples; test_x.npy test_y.npy likewise
    rows.npy    [clients, n]         each client's examples
    cohorts.npy [rounds, cohort]     clients of each round
    orders.npy  [rounds, cohort, n]  in which order the client goes over its rows in its one epoch
    weights.npz                      initial weights, by the names of a `torch.nn.Sequential`
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Task:
    """One task, read as it is needed.

    Args:
        folder: of the task. rounds: how many to run, at most as many as the folder has; all by default.
        tuned: whether models lie channels-last and SGD takes torch's fused step, as this project's do by itself.
    """

    def __init__(self, folder: str | Path, rounds: int | None = None, tuned: bool = False) -> None:
        self.folder, self.tuned = Path(folder), tuned
        self.settings: dict[str, Any] = json.loads((self.folder / "task.json").read_text())
        names = ("rows", "cohorts", "orders")
        self.rows, self.cohorts, self.orders = (np.load(self.folder / f"{name}.npy") for name in names)
        self.rounds = len(self.cohorts) if rounds is None else rounds
        self.num_clients, self.cohort = len(self.rows), self.cohorts.shape[1]
        self.batch_size, self.lr = int(self.settings["batch_size"]), float(self.settings["lr"])

    def load(self) -> None:
        """Read all clients' examples into memory; pages of a mapped file would be fetched while a round is timed."""
        self.arrays = self._tensor("train_x"), self._tensor("train_y")

    def _tensor(self, name: str) -> Tensor:
        return torch.from_numpy(np.load(self.folder / f"{name}.npy"))

    def examples(self, round_: int, place: int) -> tuple[Tensor, Tensor]:
        """Return the examples of the `place`-th client of a round (from 0), in the order of its batches."""
        x, y = self.arrays
        chosen = torch.from_numpy(self.rows[self.cohorts[round_, place]][self.orders[round_, place]])
        return x[chosen], y[chosen]

    def layers(self) -> list[nn.Module]:
        """Return the layers of the model, untrained."""
        if self.settings["model"] == "mlp":
            return [nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)]
        return [
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4096, 128), nn.ReLU(), nn.Linear(128, 10),
        ]  # fmt: skip

    def initialised(self, model: nn.Module) -> nn.Module:
        """Return a Sequential of `layers()` with the initial weights in it."""
        with np.load(self.folder / "weights.npz") as weights:
            model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
        return model.to(memory_format=torch.channels_last) if self.tuned else model  # type: ignore[call-overload]

    def optimizer(self, parameters: Any, lr: float | None = None) -> torch.optim.Optimizer:
        """Return plain SGD, fused when tuned."""
        return torch.optim.SGD(parameters, lr=self.lr if lr is None else lr, fused=True if self.tuned else None)

    def train(self, model: nn.Module, round_: int, place: int) -> int:
        """Train one client for one epoch, as anyone would write it; return its number of examples."""
        x, y = self.examples(round_, place)
        optimizer = self.optimizer(model.parameters())
        for start in range(0, len(x), self.batch_size):
            optimizer.zero_grad()
            output = model(x[start : start + self.batch_size])
            nn.functional.cross_entropy(output, y[start : start + self.batch_size]).backward()
            optimizer.step()
        return len(x)

    @torch.no_grad()
    def correct(self, model: nn.Module) -> int:
        """Return how many test examples a model gets right."""
        x, y = self._tensor("test_x"), self._tensor("test_y")
        parts = zip(x.split(500), y.split(500), strict=True)
        return sum(int((model(part).argmax(-1) == labels).sum()) for part, labels in parts)


def say(**fields: Any) -> None:
    """Print one JSON line, which `benchmarks.federated_speed` reads."""
    print(json.dumps(fields), flush=True)


class Laps:
    """Seconds of each round, said as they end."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin the first round."""
        self._last = time.perf_counter()

    def lap(self) -> None:
        """End a round and begin the next."""
        now = time.perf_counter()
        say(seconds=now - self._last)
        self._last = now


def finish(task: Task, model: nn.Module, **versions: str) -> None:
    """Say the accuracy and the versions, and leave the weights beside the task."""
    path = task.folder / "final.npz"
    np.savez(path, **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    versions |= {"torch": torch.__version__, "python": sys.version.split()[0]}
    say(correct=task.correct(model), weights=str(path), versions=versions)


def arguments() -> tuple[str, int, bool]:
    """Return task folder, rounds and whether it is tuned, from the command line."""
    return sys.argv[1], int(sys.argv[2]), sys.argv[3] == "tuned"
