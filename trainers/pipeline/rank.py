"""One rank of a pipeline: its part of the model, an optimizer step over a batch, evaluation, and its part of the state.

A step is a generator that yields while it would wait for a rank of the same process. Between processes nothing is
waited for in that way, so it runs through; in one process the ranks' generators take turns (`inline.py`). What one
step does, after all micro-batches are through:

    replicas      gradients and BatchNorm statistics are summed over the replicas of each stage; what is final leaves
                  during the last backward (`members`)
    ties          the copies of a tied parameter get the sum of all copies' gradients, in layer order
    one vector    squared gradient norms by parameter, the loss and a stop flag are summed over all ranks
    update        gradients are clipped by the norm of the whole model; each rank moves its own parameters, and where
                  nothing is clipped it does so while the sum is under way; where replicas share the parameters
                  of their stage out, each then sends its share to the others
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from strategies.pipeline import Action
from strategies.seeds import integer
from trainers import activations, models
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.local import NotFinite
from trainers.loop import Outcome, Spans, since
from trainers.pipeline import losses
from trainers.pipeline.boundaries import Agreement, Boundary
from trainers.pipeline.chunk import Chunk
from trainers.pipeline.collective import Collective
from trainers.pipeline.interpreter import Batch, Interpreter, Span
from trainers.pipeline.keeping import commit_ranges, make_saver
from trainers.pipeline.layers import Layer, chain
from trainers.pipeline.members import Members
from trainers.pipeline.part import Part
from trainers.pipeline.settings import Batches, Settings
from trainers.pipeline.ties import share_ties
from trainers.pipeline.transport import Key, Transport
from trainers.pipeline.update import Update

_HEAD = 3
"""Numbers at the head of a step's vector: the loss, the wish to stop, the bytes sent."""


class StepResult(NamedTuple):
    """What a step came to, the same on every rank.

    Args:
        loss: of the batches, before the update. norm: of the whole gradient, before clipping; NaN when not clipped.
        sent_bytes: activations and gradients that went from rank to rank. stop: whether some rank asked to stop.
    """

    loss: float
    norm: float
    sent_bytes: int
    stop: bool

    def outcome(self) -> Outcome:
        """Return the figures by metric name."""
        values = {"train/loss": self.loss, "comm/boundary_bytes": float(self.sent_bytes)}
        return Outcome(values if math.isnan(self.norm) else {**values, "train/gradient_norm": self.norm}, self.stop)


class Evaluated(NamedTuple):
    """The mean loss of a prediction on the test examples, and the part of right ones."""

    loss: float
    accuracy: float

    def values(self) -> dict[str, float]:
        """Return the figures by metric name."""
        return {"test/loss": self.loss, "test/accuracy": self.accuracy}


class Rank:
    """One stage of one replica.

    Args:
        stage, replica: which. device: where its tensors live.
    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        stage: int,
        replica: int,
        transport: Transport,
        collective: Collective,
        device: torch.device,
    ) -> None:
        self.settings, self.stage, self.replica = settings, stage, replica
        self._dataset, self._transport, self._collective, self._device = dataset, transport, collective, device
        self._batches = Batches(settings, len(dataset.train_y))
        self._dtype = getattr(torch, settings.model["dtype"])
        self._loss = losses.build(settings.loss)
        whole = chain(models.build_for(settings, dataset))
        self._heads = activations.heads_of({layer.index: layer.module for layer in whole.layers})
        self.part: Part[Chunk] = Part(whole, settings.layers, settings.placement, stage, self._make_chunk, device)
        self.update = Update(
            self.part,
            settings.optimizer,
            settings.learning_rate,
            settings.clip_norm,
            settings.steps,
            settings.shaping,
            member=replica if settings.shard_optimizer else 0,
            num_members=settings.replicas if settings.shard_optimizer else 1,
        )
        self.chunks = self.part.chunks
        self._members = Members(self.part, replica, settings.replicas, collective, f"stage {stage}")
        self._boundaries: list[dict[tuple[int, bool], Boundary]] = [{} for _ in self.chunks]
        self.spans: list[Span] = []
        self._lists: dict[int, list[Action]] = {}

    def _make_chunk(self, layers: list[Layer], position: int) -> Chunk:
        settings, num_positions = self.settings, len(self.settings.layers)
        return Chunk(
            layers,
            position,
            num_positions,
            loss=self._loss if position == num_positions - 1 else None,
            split_backward=settings.splits_backward,
            precision=settings.precision,
            saver=make_saver(settings.memory, layers, self._heads),
        )

    def spans_since(self, began_s: float) -> Spans:
        """Return the spans of the last step, in seconds since `began_s` on this process's clock."""
        return since(began_s, self.spans)

    # ------------------------------------------------------------------------------------------------- one step

    def step(self, number: int, stop: bool = False) -> Iterator[StepResult | None]:
        """Train on the batches of one optimizer step; the last thing yielded is the result, before it None.

        Args:
            number: of the step, from 1. stop: this rank's wish to stop.

        Raises:
            NotFinite: when the loss or the norm of the gradient is not. LayerFailed: from a layer.
        """
        settings = self.settings
        self.update.begin()
        self._members.begin()
        random = torch.get_rng_state()
        sent_before = self._transport.sent_bytes
        batches = self._batches.of_step(number)
        total = sum(len(rows) for rows in batches)
        loss = 0.0
        self.spans = []
        for index, rows in enumerate(batches):
            split = self._batches.split(rows, self.replica)
            yield from self._agree({len(part) for part in split}, training=True)
            batch, actions = self._batch(number, index, split, total), self._actions(len(split))
            run = Interpreter(self.chunks, settings.placement, self._transport, self._boundaries, batch, actions)
            while not run.done:
                while not run.ready():
                    yield None
                final = run.finishes if index == len(batches) - 1 else None
                with nullcontext() if final is None else self._members.final(final):
                    run.step()
            loss += sum(float(run.losses[m]) for m in sorted(run.losses))
            self.spans += run.spans
        torch.set_rng_state(random)
        group = f"stage {self.stage}"
        yield from self._members.finish()
        commit_ranges(self.chunks)
        yield from share_ties(self.part.ties, self.part.copies, self.stage, self._transport)
        self._transport.flush()
        vector = torch.zeros(_HEAD + len(self.part.names), dtype=torch.float64)
        vector[0], vector[1], vector[2] = loss, float(stop), float(self._transport.sent_bytes - sent_before)
        if settings.clip_norm is not None and self.replica == 0:
            self.update.add_norms(vector, _HEAD)
        pending = self._collective.sum("all", vector)
        if settings.clip_norm is None:
            self.update.apply(number, norm=0.0)  # asks nothing of other stages, so it does not wait for the slowest
            yield from self.update.hand_round(self._collective, group)
        while not pending.ready():
            yield None
        vector = pending.result()
        loss, norm = float(vector[0]), math.sqrt(float(vector[_HEAD:].sum()))
        if not math.isfinite(loss) or not math.isfinite(norm):
            told = f"loss {loss}" if settings.clip_norm is None else f"loss {loss}, gradient norm {norm}"
            raise NotFinite(f"training diverged at step {number}: {told}")
        if settings.clip_norm is not None:
            self.update.apply(number, norm)
            yield from self.update.hand_round(self._collective, group)
        norm = norm if settings.clip_norm is not None else float("nan")
        yield StepResult(loss, norm, int(vector[2]), bool(vector[1]))

    def _batch(self, number: int, index: int, split: Sequence[np.ndarray], total: int) -> Batch:
        """Return the micro-batches of batch `index` of a step of `total` examples."""
        settings = self.settings
        return Batch(
            [len(part) for part in split],
            [losses.weight(settings.loss["reduction"], len(part), total) for part in split],
            integer(settings.seed, "layers", number, index, self.replica),
            lambda m: self._inputs(self._dataset.train_x[split[m]]),
            lambda m: to_labels(self._dataset.train_y[split[m]]).to(self._device),
            settings.keeps(self.stage, len(split)),
        )

    def _actions(self, num_microbatches: int) -> list[Action]:
        if num_microbatches not in self._lists:
            self._lists[num_microbatches] = self.settings.actions(num_microbatches)[self.stage]
        return self._lists[num_microbatches]

    def _inputs(self, rows: object) -> Tensor:
        return to_tensor(rows, self._dataset, self._dtype).to(self._device)  # type: ignore[arg-type]

    def _agree(self, sizes: Collection[int], *, training: bool) -> Iterator[None]:
        """Agree on what travels for sizes of micro-batches not met before; every rank meets them at the same step."""
        for size in sorted(sizes):
            if (size, training) in self._boundaries[0]:
                continue
            agreements = []
            for index, chunk in enumerate(self.chunks):
                number = len(self._boundaries[index])
                while not chunk.is_first and not self._transport.ready(Key("L", chunk.position, number)):
                    yield None
                examples = self._dataset.train_x if training else self._dataset.test_x
                inputs = self._inputs(examples[:size]) if chunk.is_first else None
                agreement = Agreement(chunk, self._transport, self.settings.placement, number)
                self._boundaries[index][size, training] = agreement.settle(size, inputs, training=training)
                agreements.append(agreement)
            for index, agreement in reversed(list(enumerate(agreements if training else ()))):
                while not self.chunks[index].is_last and not self._transport.ready(agreement.word_from_behind):
                    yield None
                self._boundaries[index][size, training] = agreement.back(self._boundaries[index][size, training])

    def evaluate(self, batch_size: int) -> Iterator[Evaluated | None]:
        """Measure the model on the test examples; the last thing yielded is the result, before it None.

        Args:
            batch_size: examples of one micro-batch.
        """
        settings, dataset = self.settings, self._dataset
        rows = np.array_split(np.arange(len(dataset.test_y)), settings.replicas)[self.replica]
        split = np.array_split(rows, -(-len(rows) // batch_size)) if len(rows) else []
        yield from self._agree({len(part) for part in split}, training=False)
        total = torch.zeros(3, dtype=torch.float64)

        def score(microbatch: int, returned: Any) -> None:
            targets = to_labels(dataset.test_y[split[microbatch]]).to(self._device)
            mean = float(self._loss(returned, targets))
            count = targets.numel()
            total[0] += mean * (count if settings.loss["reduction"] == "mean" else 1)
            if isinstance(returned, Tensor) and returned.dim() == targets.dim() + 1:
                total[1] += int((returned.argmax(-1) == targets).sum())
            total[2] += count

        batch = Batch(
            [len(part) for part in split], [], 0, lambda m: self._inputs(dataset.test_x[split[m]]), None, [], score
        )
        actions = [action for action in self._actions(len(split)) if action.kind == "F"] if split else []
        run = Interpreter(self.chunks, settings.placement, self._transport, self._boundaries, batch, actions)
        while not run.done:
            while not run.ready():
                yield None
            run.step()
        self._transport.flush()
        pending = self._collective.sum("all", total)
        while not pending.ready():
            yield None
        loss, correct, count = pending.result().tolist()
        yield Evaluated(loss / count, correct / count)
