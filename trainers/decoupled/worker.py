"""One worker of a local-learning run, lossless: each batch once, in order, and the same bits as the serial program.

    a batch      receive, or read and start; forward through own modules, each of which then learns; the last one's
                 carry is sent before it does
    evaluation   the same way down, without learning; the last worker scores
    state        own modules', after one and the same batch on every worker, though not at the same time

What a module does for a batch depends on the batch and its own state (`strategies.local.serial`), so it does not
matter how far workers are apart, and they never meet. The learning rate and all seeds are functions of the batch's
number.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from strategies.local import Carry, LocalModule, serial
from strategies.local.base import FeedbackModule
from strategies.local.memory import Packing, Saved
from trainers import optimizers
from trainers.activations import export_running, restore_running
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.decoupled.links import Link, Mark
from trainers.decoupled.replicas import Alone, Replicas, rows_of
from trainers.decoupled.settings import Built, Settings
from trainers.decoupled.state import Holding, rest
from trainers.gradients import Stepped
from trainers.learning_rate import Rates
from trainers.local import NotFinite
from trainers.loop import Outcome, Spans
from trainers.pipeline.chunk import LayerFailed
from trainers.pipeline.state import Trees

DRAWN = 16
"""Batches of the time line: the last ones before an evaluation."""


class Worker:
    """Some of a rule's modules, one after the other.

    Args:
        built: model and modules, of which this worker keeps its own. number: which worker.
        link: to the workers beside it.
        origin_s: on the clock of `time.time`, what time lines count from.
        replica: which of the worker's replicas; None for all of them. group: of their processes.
    """

    ends = False

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        built: Built,
        number: int,
        link: Link,
        device: torch.device,
        *,
        origin_s: float,
        replica: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.settings, self.number = settings, number
        self._dataset, self._rule, self._device = dataset, built.rule, device
        self._owned = settings.owned(number)
        self._is_first, self._is_last = number == 0, number == settings.num_workers - 1
        count, size = settings.num_replicas(number), settings.batch_size
        self._replica = replica or 0
        self._rows = slice(0, size) if replica is None else rows_of(size, replica, count)
        own = range(count) if replica is None else (replica,)
        self._sharing = Alone() if count == 1 else Replicas(own, count, size, group)
        names = built.names()
        self._modules = [built.modules[index].to(device) for index in self._owned]
        named = [
            [(names[index][own], parameter) for own, parameter in module.named_parameters()]
            for index, module in zip(self._owned, self._modules, strict=True)
        ]
        self._optimizers = [optimizers.build(settings.optimizer, each) for each in named]
        self._gradients = [
            Stepped(settings.shaping, optimizer, each) for optimizer, each in zip(self._optimizers, named, strict=True)
        ]
        self._rates = [Rates(each, settings.learning_rate, settings.steps) for each in self._optimizers]
        kept = rest(built.model, names) if self._is_first else {}
        self._holding = Holding(self._modules, [names[index] for index in self._owned], self._optimizers, kept)
        self._saver = built.saver(settings.memory, self._owned)
        self.link = link
        self._order = settings.order(len(dataset.train_y))
        self._dtype = getattr(torch, settings.model["dtype"])
        self._last = self._descended = 0
        self._losses: list[list[float]] = [[] for _ in self._modules]
        self._saved_bytes: list[int] = []
        self._spans: deque[list[tuple[str, int, int, float, float, float]]] = deque(maxlen=DRAWN)
        self._origin_s = origin_s - time.time() + time.perf_counter()

    # ---------------------------------------------------------------------------------------------------- a batch

    def step(self, number: int, stop: bool = False) -> Outcome:
        """Train on batch `number`, from 1.

        Args:
            stop: the wish to stop, which counts on the first worker: it says which batch is the last, and the batch
                that it sends on says so to the others.

        Raises:
            NotFinite: when a module's loss is not. LayerFailed: from a module.
        """
        began = time.perf_counter()
        seed = self.settings.batch_seed(number)
        fed_bytes = self.descend(number)
        carry, mark = self._take(number, stop)
        mark = mark._replace(sent_bytes=mark.sent_bytes + fed_bytes)
        targets = to_labels(self._dataset.train_y[self._order.batch(mark.batch - 1)[self._rows]]).to(self._device)
        self._set_step(number)
        ready, spans, losses = time.perf_counter(), [], []
        measures = not self._saved_bytes
        for place, index in enumerate(self._owned):
            module = self._modules[place]
            with self._saving(index, seed, carry) as packing, self._measuring(module, packing, measures) as saved:
                with _failing(index, number, carry):
                    carry = self._sharing.forward(module, carry, targets, serial.module_seed(seed, index))
                if place + 1 == len(self._modules) and not self._is_last:
                    self._pass_on(number, carry, mark)
                forward_end = time.perf_counter()
                with _failing(index, number, carry):
                    losses.append(self._sharing.learn(module, self._optimizers[place]))
            if saved is not None:
                self._saved_bytes.append(saved.peak_bytes)
            learned = time.perf_counter()
            if not math.isfinite(losses[-1]):
                raise NotFinite(f"training diverged at step {number}: module {index} has loss {losses[-1]}")
            spans += [
                ("F", place, number, began, ready, forward_end),
                ("B", place, number, forward_end, forward_end, learned),
            ]
            began = ready = learned
        if self._saver is not None:
            self._saver.commit()
        self.link.done()
        self._spans.append(spans)
        self._last, sent_bytes, losses = self._sharing.agree(mark.last, mark.sent_bytes, losses)
        for kept, loss in zip(self._losses, losses, strict=True):
            kept.append(loss)
        values = {}
        if self._is_last:
            sent = self._sent_bytes(mark._replace(sent_bytes=sent_bytes))
            values = {"train/loss": losses[-1], "comm/boundary_bytes": float(sent)}
        return Outcome(values, number == self._last)

    @contextmanager
    def _saving(self, index: int, seed: int, carry: Carry) -> Iterator[Packing | None]:
        """Keep what a module saves for its backward passes as the experiment says."""
        if self._saver is None:
            yield None
            return
        with self._saver.microbatch(0, seed), self._saver.layer(index, list(carry.values())) as layer:
            yield layer

    def _measuring(self, module: LocalModule, packing: Packing | None, measures: bool) -> Any:
        return Saved([module], packing) if measures else nullcontext()

    def descend(self, number: int) -> int:
        """Bring the classes down through own modules before batch `number`, where the rule does; return bytes sent.

        As `serial.descend`: a worker waits until the one behind has learned from the batch before. In one process the
        later workers are asked first, and `step` then has nothing left to do.
        """
        taking = [module for module in self._modules if isinstance(module, FeedbackModule)]
        if not taking or self._descended == number:
            return 0
        self._descended = number
        if self._is_last:
            weight = next(taking[-1].parameters())
            c = torch.eye(self._dataset.num_classes, dtype=weight.dtype, device=weight.device)
        else:
            c = self.link.receive_feedback(number)
        for module in reversed(taking):
            c = module.feedback(c)
        return 0 if self._is_first else self.link.send_feedback(number, c.clone())

    def _take(self, number: int, stop: bool) -> tuple[Carry, Mark]:
        """Return a batch as this worker's first module takes it."""
        if self._is_first:
            if stop and not self._last:
                self._last = self._last_after(number)
            return self._start(number), Mark(number, self._last, 0)
        received, mark = self.link.receive(number, self.settings.batch_size, self._last or self.settings.steps)
        self._last = mark.last
        return received if self._rule.stream == "forward" else self._start(number), mark

    def _last_after(self, number: int) -> int:
        """Return the last batch of a run that is to stop: later workers may have posted receives up to this one."""
        return min(number + self.settings.queue - 1, self.settings.steps)

    def _start(self, number: int) -> Carry:
        """Return a batch as the first module takes it."""
        rows, seed = self._order.batch(number - 1)[self._rows], self.settings.batch_seed(number)
        y = to_labels(self._dataset.train_y[rows]).to(self._device)
        return self._rule.start(self._inputs(self._dataset.train_x[rows]), y, self._dataset.num_classes, seed)

    def _pass_on(self, number: int, carry: Carry, mark: Mark) -> None:
        self.link.send(number, carry if self._rule.stream == "forward" else {}, mark)

    def _sent_bytes(self, mark: Mark) -> int:
        """Return what was sent over all links for the last worker's present step."""
        return mark.sent_bytes

    def _set_step(self, number: int) -> None:
        """Bring rates, and the numbers of the optimizers' steps, to those of batch `number`."""
        for module, gradients in zip(self._modules, self._gradients, strict=True):
            gradients.step = (number - 1) * module.inner_steps + 1
        for rates in self._rates:
            rates.set(number)

    def _inputs(self, rows: Any) -> Tensor:
        return to_tensor(rows, self._dataset, self._dtype).to(self._device)

    # ------------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, number: int) -> Mapping[str, float]:
        """Measure the model on the test examples after batch `number`.

        Returns:
            What this worker knows: of the last one `test/*`; of all, for each module, its mean loss since the last
            evaluation and the bytes that its backward pass needs; between processes, the worker's peak memory. Of
            several replicas the first knows it all, and the others nothing.
        """
        if self._replica:
            self._losses = [[] for _ in self._modules]
            return {}
        dataset, size = self._dataset, self.settings.evaluate_batch
        starts = range(0, len(dataset.test_y), size)
        sizes = [min(size, len(dataset.test_y) - start) for start in starts]
        loss = correct = 0.0
        for index, start in enumerate(starts):
            rows = slice(start, start + size)
            if self._is_first:
                x, seed = self._inputs(dataset.test_x[rows]), self.settings.evaluation_seed(index)
                carry = self._rule.start(x, None, dataset.num_classes, seed)
            else:
                carry = self.link.receive_test(index, sizes)
            for module in self._modules:
                carry = module.infer(carry)
            if self._is_last:
                scores, y = self._rule.scores(carry), to_labels(dataset.test_y[rows]).to(self._device)
                loss += float(torch.nn.functional.cross_entropy(scores, y, reduction="sum"))
                correct += int((scores.argmax(-1) == y).sum())
            else:
                self.link.send_test(index, carry)
            self.link.done()
        return self._told(loss / len(dataset.test_y), correct / len(dataset.test_y))

    def _told(self, loss: float, accuracy: float) -> dict[str, float]:
        found = {"test/loss": loss, "test/accuracy": accuracy} if self._is_last else {}
        for index, losses in zip(self._owned, self._losses, strict=True):
            if losses:
                found[f"modules/loss_{index}"] = math.fsum(losses) / len(losses)
        for index, num_bytes in zip(self._owned, self._saved_bytes, strict=False):
            found[f"modules/saved_bytes_{index}"] = float(num_bytes)
        if self.link.counts:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found[f"workers/memory_bytes_{self.number}"] = peak * (1.0 if sys.platform == "darwin" else 1024.0)
        self._losses = [[] for _ in self._modules]
        return found

    def spans_since(self, began_s: float) -> Spans:
        """Return the spans of the last batches, in seconds since the run's workers began, whatever `began_s`.

        Workers are batches apart: what they did in one step of theirs would not lie side by side.
        """
        found = [span for spans in self._spans for span in spans]
        first = found[0][2] if found else 0
        self._spans.clear()
        zero = self._origin_s
        return [
            (kind, chunk, number - first, begin - zero, ready - zero, end - zero)
            for kind, chunk, number, begin, ready, end in found
        ]

    # ------------------------------------------------------------------------------------------------------ state

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return this worker's part of what a checkpoint holds."""
        return self._holding.export() | ({} if self._saver is None else export_running(self._saver))

    def restore(self, trees: Trees) -> None:
        """Take this worker's part out of the whole state."""
        self._holding.restore(trees)
        if self._saver is not None:
            restore_running(self._saver, trees)


@contextmanager
def _failing(index: int, number: int, carry: Carry) -> Iterator[None]:
    """Say of what a module raises which module it was, at which step, beside what tensors."""
    try:
        yield
    except Exception as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in carry.items())
        raised = f"{type(error).__name__}: {error}"
        raise LayerFailed(f"module {index}, at step {number} with {shapes}, raised {raised}") from error
