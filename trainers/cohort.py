"""The worker of the rounds engine: trains a block of clients one after another and folds what they return.

A worker holds one model, the data and the partition for its whole life. It is asked about blocks of clients and
of test examples; an answer depends on its question alone, so any worker may answer any of them, twice if need be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from strategies.base import Contribution, Participation, Update
from strategies.federated import server_rule
from strategies.federated.folding import fold
from strategies.partition.base import Partition
from trainers import models, modules, wire
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, loss_of, train
from trainers.threads import intra_op_threads


class ClientFailed(Exception):
    """A client's training raised; the message names the client and the reason."""


class ClientReport(NamedTuple):
    """One client's figures. `failed` is empty, or says why its update was dropped."""

    client: int
    num_examples: int
    num_steps: int
    loss: float
    failed: str = ""


class BlockReport(NamedTuple):
    """What a block of clients comes to: the encoded sum of its contributions, and figures a client.

    `total` is None when every client of the block was dropped. `received_bytes` is the broadcast's size.
    """

    total: pa.Buffer | None
    weight: float
    num_clients: int
    clients: tuple[ClientReport, ...]
    compute_s: float
    wire_s: float


class EvalReport(NamedTuple):
    """Sums over a slice of the test set: examples, predictions, correct ones, and loss in float64."""

    num_predictions: int
    num_correct: int
    loss_sum: float
    compute_s: float
    wire_s: float


class CohortWorker:
    """Trains and evaluates for the rounds engine.

    Args:
        model: the experiment's `model` section. algorithm: its name and rule arguments. client: `strategy.client`.
        dataset, partition: the data, and which rows each client owns.
        seed: the run's seed.
        on_failure: `raise`, `drop`, or `retry` (two more attempts, then raise) when a client's training fails.
        threads: intra-op threads. device: `cpu` or `cuda`.
    """

    def __init__(
        self,
        *,
        model: Mapping[str, Any],
        algorithm: Mapping[str, Any],
        client: Mapping[str, Any],
        dataset: Dataset,
        partition: Partition,
        seed: int,
        on_failure: str = "raise",
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._dataset = dataset
        self._partition = partition
        self._seed = seed
        self._on_failure = on_failure
        self._threads = threads
        self._device = torch.device(device)
        self._dtype = getattr(torch, model["dtype"])
        self._rule = server_rule(**algorithm)
        self._settings = LocalSettings.from_section(client)
        built = models.build(model, input_shape=dataset.input_shape, num_classes=dataset.num_classes, seed=seed)
        self._model = built.to(self._device)
        self._version = -1
        self._received: dict[str, Tensor] = {}

    def train(self, round_: int, clients: tuple[int, ...], version: int, broadcast: pa.Buffer) -> BlockReport:
        """Train the clients of one block from one model version and fold their contributions in id order."""
        with intra_op_threads(self._threads):
            wire_s = self._receive(version, broadcast)
            began = time.perf_counter()
            reports: list[ClientReport] = []
            folded = fold(self._contributions(round_, clients, reports))
            compute_s = time.perf_counter() - began
            began = time.perf_counter()
            total = wire.encode(folded.total) if folded else None
            wire_s += time.perf_counter() - began
        weight, count = (folded.weight, folded.num_clients) if folded else (0.0, 0)
        return BlockReport(total, weight, count, tuple(reports), compute_s, wire_s)

    @torch.no_grad()
    def evaluate(self, start: int, stop: int, batch_size: int, version: int, broadcast: pa.Buffer) -> EvalReport:
        """Evaluate one model version on test examples `start:stop`."""
        with intra_op_threads(self._threads):
            wire_s = self._receive(version, broadcast)
            began = time.perf_counter()
            modules.load(self._model, self._received)
            self._model.eval()
            predictions = correct = 0
            loss_sum = 0.0
            for first in range(start, stop, batch_size):
                x, y = self._tensors(
                    self._dataset.test_x, self._dataset.test_y, slice(first, min(first + batch_size, stop))
                )
                logits = self._model(x)
                loss_sum += float(loss_of(logits, y, reduction="sum").double())
                correct += int((logits.argmax(-1) == y).sum())
                predictions += y.numel()
            return EvalReport(predictions, correct, loss_sum, time.perf_counter() - began, wire_s)

    def _receive(self, version: int, broadcast: pa.Buffer) -> float:
        """Decode a broadcast once a version; return the seconds it took."""
        began = time.perf_counter()
        if version != self._version:
            self._received = {name: tensor.to(self._device) for name, tensor in wire.decode(broadcast).items()}
            self._version = version
        return time.perf_counter() - began

    def _tensors(self, x: Any, y: Any, rows: Any) -> tuple[Tensor, Tensor]:
        inputs = to_tensor(x[rows], self._dataset, self._dtype)
        return inputs.to(self._device), to_labels(y[rows]).to(self._device)

    def _contributions(
        self, round_: int, clients: tuple[int, ...], reports: list[ClientReport]
    ) -> Iterator[Contribution]:
        for client in clients:
            rows = self._partition.rows(client)
            attempts = 3 if self._on_failure == "retry" else 1
            for attempt in range(1, attempts + 1):
                try:
                    x, y = self._tensors(self._dataset.train_x, self._dataset.train_y, rows)
                    trained = train(
                        self._model, self._received, x, y, self._settings,
                        run_seed=self._seed, round_=round_, client=client,
                    )  # fmt: skip
                    break
                except Exception as error:  # a user's model may raise anything
                    reason = f"{type(error).__name__}: {error}"
                    if self._on_failure == "drop":
                        reports.append(ClientReport(client, len(rows), 0, float("nan"), reason))
                        trained = None
                        break
                    if attempt == attempts:
                        raise ClientFailed(f"client {client}: {reason}") from error
            if trained is None:
                continue
            reports.append(ClientReport(client, len(rows), trained.num_steps, trained.loss))
            update = Update(str(client), trained.delta, float(len(rows)), trained.num_steps, {"loss": trained.loss})
            yield self._rule.contribute(update, Participation())
