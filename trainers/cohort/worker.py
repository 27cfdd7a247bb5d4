"""The worker of the rounds engine: trains blocks of participations and folds what they return.

A worker holds one model, the data and the partition for its whole life. What it is asked about carries all that the
answer depends on, so any worker may answer any question, twice if need be, with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from strategies.base import Contribution, Tree
from strategies.compression import build
from strategies.federated import server_rule
from strategies.federated.folding import Summation, fold
from strategies.partition.base import Partition
from strategies.seeds import integer
from trainers import modules, optimizers, wire
from trainers.cohort import holdout, remembered
from trainers.cohort.bodies import Bodies, Body
from trainers.cohort.messages import ClientReport, EvalReport, PersonalReport, SpanReport, Work
from trainers.cohort.releases import Release, Releases, downlink_codec
from trainers.cohort.uplink import Uplink
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, Task, Trained, loss_of, train
from trainers.threads import intra_op_threads


class ClientFailed(Exception):
    """A client's training raised; the message names the client and the reason."""


class CohortWorker:
    """Trains and evaluates for the rounds engine.

    Args:
        model: the experiment's `model` section. algorithm: arguments of `server_rule`. client: `strategy.client`.
        dataset, partition: the data, and which rows each client owns.
        seed: the run's seed.
        compression, downlink: codec chains of updates and of broadcasts, as lists of sections; empty for none.
        error_feedback: clients keep what their codec left unsent.
        aggregate_keys: pattern of the tensors that are aggregated; None for all. The others stay with their client.
        held_out: fraction of its examples that a client keeps from training.
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
        compression: Sequence[Mapping[str, Any]] = (),
        downlink: Sequence[Mapping[str, Any]] = (),
        error_feedback: bool = False,
        aggregate_keys: str | None = None,
        held_out: float = 0.0,
        on_failure: str = "raise",
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._dataset, self._partition, self._seed = dataset, partition, seed
        self._on_failure, self._threads, self._held_out = on_failure, threads, held_out
        self._device = torch.device(device)
        self._dtype = getattr(torch, model["dtype"])
        self._settings = LocalSettings.from_section(client)
        self._bodies = Bodies(model, dataset, integer(seed, "model"), aggregate_keys, self._device)
        self._rule = server_rule(**algorithm)
        shared = self._bodies.check().first_shared
        self._first_memory = self._rule.remember(shared)
        defaults = optimizers.defaults(self._settings.optimizer)
        self._uplink = Uplink(
            self._rule,
            build(compression).bind(shared) if compression else None,
            error_feedback,
            defaults.get("lr", 1.0),
            defaults.get("momentum", 0.0),
        )
        self._releases = Releases(downlink_codec(downlink, self._rule, shared), self._device)

    # -- what the engine asks -----------------------------------------------------------------------------------

    def train(self, blocks: Sequence[Sequence[Work]], versions: Sequence[int], *broadcasts: pa.Buffer) -> SpanReport:
        """Train the participations of a span of blocks and fold their contributions along the tree."""
        with intra_op_threads(self._threads):
            releases, wire_s = self._releases.receive(versions, broadcasts)
            began = time.perf_counter()
            reports: list[ClientReport] = []
            states: dict[int, pa.Buffer] = {}
            summation = Summation()
            for block in blocks:
                summation.push(fold(self._contributions(block, releases, reports, states)))
            folded = summation.total()
            compute_s = time.perf_counter() - began
            began = time.perf_counter()
            total = wire.encode(folded.total) if folded else None
            wire_s += time.perf_counter() - began
        weight, count = (folded.weight, folded.num_clients) if folded else (0.0, 0)
        return SpanReport(total, weight, count, tuple(reports), states, compute_s, wire_s)

    @torch.no_grad()
    def evaluate(self, start: int, stop: int, batch_size: int, version: int, broadcast: pa.Buffer) -> EvalReport:
        """Evaluate one plainly encoded model on test examples `start:stop`."""
        with intra_op_threads(self._threads):
            began = time.perf_counter()
            tree = {name: tensor.to(self._device) for name, tensor in wire.decode(broadcast).items()}
            wire_s = time.perf_counter() - began
            began = time.perf_counter()
            body = self._bodies.of_shape(self._dataset.input_shape)
            modules.load(body.model, {**tree, **body.first_personal, **body.frozen})
            rows = np.arange(start, stop)
            figures = self._measure(body, self._dataset.test_x, self._dataset.test_y, rows, batch_size)
            return EvalReport(*figures, time.perf_counter() - began, wire_s)

    @torch.no_grad()
    def evaluate_clients(
        self, works: Sequence[Work], batch_size: int, what: str, step: int, broadcast: pa.Buffer
    ) -> tuple[PersonalReport, ...]:
        """Evaluate each client's own model: the aggregated tensors and its personal ones.

        Args:
            what: `training` examples, those `held out`, or the latter and the `best` model is to be remembered.
        """
        with intra_op_threads(self._threads):
            shared = {name: tensor.to(self._device) for name, tensor in wire.decode(broadcast).items()}
            return tuple(self._evaluate_client(work, shared, batch_size, what) for work in works)

    # -- training -------------------------------------------------------------------------------------------------

    def _contributions(
        self,
        block: Sequence[Work],
        releases: Mapping[int, Release],
        reports: list[ClientReport],
        states: dict[int, pa.Buffer],
    ) -> Iterator[Contribution]:
        for work in block:
            release = releases[work.version]
            rows, _ = self._rows(work.client)
            body = self._bodies.of(rows)
            # A client that takes part twice in a step goes on from what its first part left behind.
            state = remembered.decode(states.get(work.client, work.state), self._device)
            state = state._replace(memory=state.memory or self._first_memory)
            correction = self._rule.correct(release.sent, state.memory)
            start = release.model
            if body.first_personal or body.frozen:
                start = {**release.model, **(state.personal or body.first_personal), **body.frozen}
            task = Task(work.client, work.version + 1, start, work.repeat, work.num_steps or None, correction)
            trained, reason = self._attempt(body, task, rows)
            if trained is None:
                reports.append(ClientReport(work.client, len(rows), 0, float("nan"), reason, work.staleness))
                continue
            if body.first_personal:
                own = modules.tensors(body.model)
                state = state._replace(personal={name: own[name].clone() for name in body.first_personal})
            trained = trained._replace(delta={name: trained.delta[name] for name in body.shared})
            seed = integer(self._seed, "codec", work.version + 1, work.client, work.repeat)
            sent = self._uplink.send(work, trained, len(rows), release.sent, state, correction.proximal, seed)
            if not sent.state.empty:
                states[work.client] = remembered.encode(sent.state)
            figures = (work.client, len(rows), trained.num_steps, trained.loss, "", work.staleness, sent.num_bytes)
            reports.append(ClientReport(*figures))
            yield sent.contribution

    def _attempt(self, body: Body, task: Task, rows: np.ndarray) -> tuple[Trained | None, str]:
        """Train one client as often as `on_failure` allows; return None and the reason when it is to be dropped."""
        attempts = 3 if self._on_failure == "retry" else 1
        for attempt in range(1, attempts + 1):
            try:
                x, y = self._tensors(body, self._dataset.train_x, self._dataset.train_y, rows)
                return train(body.model, task, x, y, self._settings, run_seed=self._seed), ""
            except Exception as error:  # a user's model may raise anything
                reason = f"{type(error).__name__}: {error}"
                if self._on_failure == "drop":
                    return None, reason
                if attempt == attempts:
                    raise ClientFailed(f"client {task.client}: {reason}") from error
        raise AssertionError("unreachable")

    # -- evaluation -----------------------------------------------------------------------------------------------

    def _evaluate_client(self, work: Work, shared: Tree, batch_size: int, what: str) -> PersonalReport:
        training, held = self._rows(work.client)
        rows = training if what == "training" else held
        body = self._bodies.of(training)
        state = remembered.decode(work.state, self._device)
        own = {**shared, **(state.personal or body.first_personal), **body.frozen}
        modules.load(body.model, own)
        figures = self._measure(body, self._dataset.train_x, self._dataset.train_y, rows, batch_size)
        accuracy = figures[1] / max(1, figures[0])
        payload = None
        if what == "best" and figures[0] and accuracy > state.best_accuracy:
            best = {name: own[name] for name in (*body.shared, *body.first_personal)}
            payload = remembered.encode(state._replace(best=best, best_accuracy=accuracy))
        return PersonalReport(work.client, *figures, payload)

    def _measure(
        self, body: Body, x: np.ndarray, y: np.ndarray, rows: np.ndarray, batch_size: int
    ) -> tuple[int, int, float]:
        """Return predictions, correct ones and the sum of the loss of the loaded network on some rows."""
        body.model.eval()
        predictions = correct = 0
        loss_sum = 0.0
        for first in range(0, len(rows), batch_size):
            inputs, targets = self._tensors(body, x, y, rows[first : first + batch_size])
            logits = body.model(inputs)
            loss_sum += float(loss_of(logits, targets, reduction="sum").double())
            correct += int((logits.argmax(-1) == targets).sum())
            predictions += targets.numel()
        return predictions, correct, loss_sum

    def _rows(self, client: int) -> tuple[np.ndarray, np.ndarray]:
        return holdout.split(self._partition.rows(client), self._held_out, self._seed, client)

    def _tensors(self, body: Body, x: Any, y: Any, rows: Any) -> tuple[Tensor, Tensor]:
        inputs = to_tensor(x[rows], body.inputs, self._dtype)
        return inputs.to(self._device), to_labels(y[rows]).to(self._device)
