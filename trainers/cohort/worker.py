"""The worker of the rounds engine: trains blocks of participations and folds what they return.

A worker holds one model, the data and the partition for its whole life. What it is asked about carries all that the
answer depends on, so any worker may answer any question, twice if need be, with the same bits.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from strategies.base import Contribution, Fold, Tree, Update
from strategies.compression import build
from strategies.federated import server_rule
from strategies.federated.stacking import Stack
from strategies.partition import Drawn, Partition
from strategies.seeds import integer
from trainers import modules, optimizers, wire
from trainers.batched import Batched, Group, gather
from trainers.cohort import holdout, remembered
from trainers.cohort.bodies import Bodies, Body
from trainers.cohort.gathering import STACKED, SUMMED, Made
from trainers.cohort.messages import ClientReport, EvalReport, PersonalReport, Rows, SpanAnswer, SpanReport, Work
from trainers.cohort.releases import Release, Releases, downlink_codec
from trainers.cohort.remembered import Remembered
from trainers.cohort.side_by_side import Row
from trainers.cohort.uplink import Uplink
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, Task, Trained, loss_of, needed, train
from trainers.threads import intra_op_threads


class ClientFailed(Exception):
    """A client's training raised; the message names the client and the reason."""


class Told(NamedTuple):
    """What a call has to tell so far: a report a participation, and clients' new states."""

    reports: list[ClientReport]
    states: dict[int, pa.Buffer]


class Item(NamedTuple):
    """One participation with all that it starts from."""

    work: Work
    rows: np.ndarray
    body: Body
    state: Remembered
    sent: Tree
    task: Task

    def dropped(self, reason: str) -> ClientReport:
        """Return the report of a participation that came to nothing."""
        return ClientReport(self.work.client, len(self.rows), 0, math.nan, reason, self.work.staleness)


def waves(block: Sequence[Work]) -> list[list[Work]]:
    """Split a block so that nobody takes part twice in a wave: the second time starts from what the first left."""
    if len({work.client for work in block}) == len(block):
        return [list(block)]
    split: list[list[Work]] = []
    times: Counter[int] = Counter()
    for work in block:
        if times[work.client] == len(split):
            split.append([])
        split[times[work.client]].append(work)
        times[work.client] += 1
    return split


class CohortWorker:
    """Trains and evaluates for the rounds engine.

    Args:
        model: the experiment's `model` section. algorithm: arguments of `server_rule`. client: `strategy.client`.
        dataset, partition: the data, and which rows each client owns.
        seed: the run's seed.
        compression, downlink: codec chains of updates and of broadcasts, as lists of sections; empty for none.
        error_feedback: clients keep what their codec left unsent.
        aggregate_keys: pattern of the tensors that are aggregated; None for all. The others stay with their client.
        begun: tensors that models begin with, encoded, as pretraining left them; None where there was none.
        held_out: fraction of its examples that a client keeps from training.
        vectorise: `loop` trains one client after another, `batched` those of a block side by side.
        stacked: contributions are returned one by one, and not their sum.
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
        partition: Partition | Drawn,
        seed: int,
        compression: Sequence[Mapping[str, Any]] = (),
        downlink: Sequence[Mapping[str, Any]] = (),
        error_feedback: bool = False,
        aggregate_keys: str | None = None,
        begun: pa.Buffer | None = None,
        held_out: float = 0.0,
        vectorise: str = "loop",
        stacked: bool = False,
        on_failure: str = "raise",
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._dataset, self._partition, self._seed = dataset, partition, seed
        self._on_failure, self._threads, self._held_out = on_failure, threads, held_out
        self._gathering = STACKED if stacked else SUMMED
        self._device = torch.device(device)
        self._dtype = getattr(torch, model["dtype"])
        self._settings = LocalSettings.from_section(client)
        learned = None if begun is None else wire.decode(begun, copy=False)  # only read: `adopt` copies it
        self._bodies = Bodies(model, dataset, integer(seed, "model"), aggregate_keys, self._device, learned)
        self._rule = server_rule(**algorithm)
        first = self._bodies.check()
        shared = first.first_shared
        self._batched: Batched | None = None
        if vectorise == "batched":
            self._batched = Batched(first.model, self._settings, first.inputs.input_shape)
        self._first_memory = self._rule.remember(shared)
        defaults = optimizers.defaults(self._settings.optimizer)
        self._uplink = Uplink(
            self._rule,
            build(compression).bind(shared) if compression else None,
            wire.size(shared),
            error_feedback,
            defaults.get("lr", 1.0),
            defaults.get("momentum", 0.0),
        )
        self._releases = Releases(downlink_codec(downlink, self._rule, shared), self._device)

    # -- what the engine asks -----------------------------------------------------------------------------------

    def train(self, blocks: Sequence[Rows], versions: Sequence[int], *broadcasts: pa.Buffer) -> SpanReport:
        """Train the participations of a span of blocks and fold their contributions along the tree, or stack them."""
        with intra_op_threads(self._threads):
            releases, wire_s = self._releases.receive(versions, broadcasts)
            began = time.perf_counter()
            told = Told([], {})
            collected = self._gathering.collect()
            for block in blocks:
                collected.push(self._gather([*map(Work._make, block)], releases, told))
            part: Fold | Stack | None = collected.total()
            compute_s = time.perf_counter() - began
            began = time.perf_counter()
            answer = SpanAnswer.of(part)
            wire_s += time.perf_counter() - began
        return SpanReport(answer, tuple(map(tuple, told.reports)), told.states, compute_s, wire_s)

    @torch.no_grad()
    def evaluate(self, start: int, stop: int, batch_size: int, version: int, broadcast: pa.Buffer) -> EvalReport:
        """Evaluate one plainly encoded model on test examples `start:stop`."""
        with intra_op_threads(self._threads):
            began = time.perf_counter()
            tree = wire.decode(broadcast, copy=False)  # only read: `load` copies it into the model
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
            shared = wire.decode(broadcast, copy=False)  # only read: `load` copies it into the model
            return tuple(self._evaluate_client(work, shared, batch_size, what) for work in works)

    # -- training -------------------------------------------------------------------------------------------------

    def _gather(self, block: Sequence[Work], releases: Mapping[int, Release], told: Told) -> Fold | Stack | None:
        """Train a block of participations and fold or stack their contributions."""
        if self._batched is None:
            return self._gathering.part(self._one_by_one(block, releases, told))
        total, first = None, len(told.reports)
        for wave in waves(block):
            total = self._gathering.add(total, self._side_by_side(wave, releases, told))
        told.reports[first:] = sorted(told.reports[first:], key=lambda report: report.client)  # as they were asked for
        return total

    def _one_by_one(self, block: Sequence[Work], releases: Mapping[int, Release], told: Told) -> Iterator[Made]:
        for work in block:
            item = self._item(work, releases, told)
            trained, reason = self._attempt(item)
            if trained is None:
                told.reports.append(item.dropped(reason))
                continue
            personal: Tree = {}
            if item.body.first_personal:
                own = modules.tensors(item.body.model)
                personal = {name: own[name].clone() for name in item.body.first_personal}
            delta = {name: trained.delta[name] for name in item.body.shared}
            yield work.client, self._send(item, delta, trained.num_steps, trained.loss, personal, told)

    def _side_by_side(self, wave: Sequence[Work], releases: Mapping[int, Release], told: Told) -> Fold | Stack | None:
        assert self._batched is not None
        items = [self._item(work, releases, told) for work in wave]
        tasks, rows, seed = [item.task for item in items], [item.rows for item in items], self._seed
        inputs, to = items[0].body.inputs, (self._dtype, self._device)
        examples = gather(inputs, tasks, rows, self._settings, *to, run_seed=seed)
        groups = self._batched.groups(tasks, examples, run_seed=seed)
        done, total = 0, None
        while done < len(items):
            try:
                group = next(groups)
            except Exception:  # a user's model may raise anything: one by one, whoever raises is found and named
                rest = self._gathering.part(self._one_by_one(wave[done:], releases, told))
                return self._gathering.add(total, rest)
            part = items[done : done + len(group.loss)]
            done += len(part)
            total = self._gathering.add(total, self._send_group(part, group, told))
        return total

    def _send_group(self, items: Sequence[Item], group: Group, told: Told) -> Fold | Stack | None:
        rows = [Row(group, place, item.body.shared) for place, item in enumerate(items)]
        kept, made = [], []
        for place, (item, reason) in enumerate(zip(items, group.failed(), strict=True)):
            if reason and self._on_failure != "drop":
                raise ClientFailed(f"client {item.work.client}: NotFinite: {reason}")
            if reason:
                told.reports.append(item.dropped(f"NotFinite: {reason}"))
                continue
            personal: Tree = {}
            if item.body.first_personal:
                every = Row(group, place, tuple(item.body.first_personal))
                personal = {name: item.task.start[name] + change for name, change in every.items()}
            sent = self._send(item, rows[place], group.num_steps[place], group.loss[place], personal, told)
            kept.append(place)
            made.append((item.work.client, sent))
        return self._gathering.group(group, rows, made, kept)

    def _item(self, work: Work, releases: Mapping[int, Release], told: Told) -> Item:
        """Put together what one participation starts from."""
        release = releases[work.version]
        rows, _ = self._rows(work.client)
        body = self._bodies.of(rows)
        # A client that takes part twice in a step goes on from what its first part left behind.
        state = remembered.decode(told.states.get(work.client, work.state), self._device)
        state = state._replace(memory=state.memory or self._first_memory)
        correction = self._rule.correct(release.sent, state.memory)
        start = release.model
        if body.first_personal or body.frozen:
            start = {**release.model, **(state.personal or body.first_personal), **body.frozen}
        task = Task(work.client, work.version + 1, start, work.repeat, work.num_steps or None, correction)
        return Item(work, rows, body, state, release.sent, task)

    def _attempt(self, item: Item) -> tuple[Trained | None, str]:
        """Train one client as often as `on_failure` allows; return None and the reason when it is to be dropped."""
        attempts = 3 if self._on_failure == "retry" else 1
        for attempt in range(1, attempts + 1):
            try:
                rows, chosen = needed(item.rows, self._settings, item.task, self._seed)
                x, y = self._tensors(item.body, self._dataset.train_x, self._dataset.train_y, rows)
                model, settings = item.body.model, self._settings
                return train(model, item.task, x, y, settings, run_seed=self._seed, chosen=chosen), ""
            except Exception as error:  # a user's model may raise anything
                reason = f"{type(error).__name__}: {error}"
                if self._on_failure == "drop":
                    return None, reason
                if attempt == attempts:
                    raise ClientFailed(f"client {item.work.client}: {reason}") from error
        raise AssertionError("unreachable")

    def _send(self, item: Item, delta: Tree, num_steps: int, loss: float, personal: Tree, told: Told) -> Contribution:
        """Pass an update on, and tell of it."""
        work, num_examples = item.work, len(item.rows)
        seed = 0 if self._uplink.plain else integer(self._seed, "codec", *item.task.seed_indices)
        state = item.state._replace(personal=personal) if personal else item.state
        update = Update(str(work.client), delta, float(num_examples), num_steps, {"loss": loss})
        sent = self._uplink.send(update, work.staleness, item.sent, state, item.task.correction.proximal, seed)
        if not sent.state.empty:
            told.states[work.client] = remembered.encode(sent.state)
        told.reports.append(
            ClientReport(work.client, num_examples, num_steps, loss, "", work.staleness, sent.num_bytes)
        )
        return sent.contribution

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
