"""What travels between workers: a batch's carry, in bounded queues, and a mark; there is no message for gradients.

    queue     the receiver has posted `queue - 1` receives ahead, the sender waits for its last message to be taken:
              so at most `queue` batches are between two workers, and a fast one waits for a slow one
    mark      three numbers that go with each batch: which batch it is, which is the last, 0 while nobody knows, and
              the bytes that were sent for this batch so far
    stop      the first worker decides; as receives are posted ahead, the last batch is then some batches away

Labels do not travel: every worker has the data, and knows which examples a batch has from its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from strategies.local import Carry, LocalModule, LocalRule
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.pipeline.transport import Key, Spec, Transport

_MARK = Spec("mark", (3,), torch.int64)
MARK_BYTES = 24
_NUMBERS = 1 << 14  # that a message's key can tell apart; far more than are under way


class Mark(NamedTuple):
    """What goes with a batch.

    Args:
        batch: its number, from 1. last: number of the run's last step, 0 while it is unknown.
        sent_bytes: over the links so far, for this batch; in asynchronous runs, for all.
    """

    batch: int
    last: int
    sent_bytes: int


class Carried(NamedTuple):
    """What a worker receives, told by two examples: in training, and in an evaluation."""

    train: tuple[Spec, ...]
    infer: tuple[Spec, ...]


def carried(before: Sequence[LocalModule], rule: LocalRule, x: Tensor, y: Tensor, num_classes: int) -> Carried:
    """Return what comes out of modules, tried on two examples; the modules' statistics move.

    Raises:
        ValueError: for what is not batch-first.
    """
    train = rule.start(x, y, num_classes, 0)
    infer = rule.start(x, None, num_classes, 0)
    for module in before:
        train, infer = module(train, y, 0), module.infer(infer)
    if rule.stream == "none":
        train = {}
    return Carried(_specs(train, len(x)), _specs(infer, len(x)))


def num_bytes(carry: Carry) -> int:
    """Return the bytes of a carry's tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in carry.values())


def two_examples(dataset: Dataset, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two training examples and their classes; one of them twice where there is one only."""
    rows = np.resize(np.arange(min(2, len(dataset.train_y))), 2)
    return to_tensor(dataset.train_x[rows], dataset, dtype), to_labels(dataset.train_y[rows])


class Link:
    """One worker's two ends: towards the worker before and towards the one behind.

    Args:
        number: which worker. incoming: what it receives; None for the first.
        queue: batches that may be under way to it. counts: whether what is sent leaves this process.
        feedback: what it receives from the worker behind, where rules send the classes down; else None.
    """

    def __init__(
        self,
        transport: Transport,
        number: int,
        incoming: Carried | None,
        queue: int,
        *,
        counts: bool,
        feedback: Spec | None = None,
    ) -> None:
        self._transport, self._number, self.counts = transport, number, counts
        self._incoming, self._feedback = incoming, feedback
        self.ahead = queue - 1
        self._posted = {"F": 0, "E": 0}
        self._held: list[Tensor] = []

    def receive(self, number: int, size: int, last: int) -> tuple[Carry, Mark]:
        """Wait for training batch `number`, from 1, of so many examples; none beyond `last` is expected."""
        self._expect("F", number, min(number + self.ahead, last), size)
        carry = self._receive("F", number)
        return carry, Mark(*carry.pop("mark").tolist())

    def send(self, number: int, carry: Carry, mark: Mark) -> None:
        """Send a training batch on, as message `number`; the bytes of the message are added to those of the mark."""
        tensors = self._outgoing(carry)
        if self.counts:
            mark = mark._replace(sent_bytes=mark.sent_bytes + MARK_BYTES + num_bytes(tensors))
        self._send("F", number, {**tensors, "mark": torch.tensor(mark)})

    def receive_test(self, index: int, sizes: Sequence[int]) -> Carry:
        """Wait for a batch of test examples, of which each has so many."""
        if index == 0:
            self._posted["E"] = 0
        for ahead in range(index, min(index + 2, len(sizes))):
            self._expect("E", index + 1, ahead + 1, sizes[ahead])
        return self._receive("E", index + 1)

    def send_test(self, index: int, carry: Carry) -> None:
        """Send a batch of test examples on."""
        self._send("E", index + 1, self._outgoing(carry))

    def inbox(self, transport: Transport) -> Link:
        """Return the receiving end alone, over another transport and without a queue: for a thread of its own."""
        return Link(transport, self._number, self._incoming, 1, counts=self.counts)

    def receive_feedback(self, number: int) -> Tensor:
        """Wait for what the worker behind makes of the classes before batch `number`."""
        key = self._key("D", self._number, number)
        if self._feedback is not None:
            self._transport.expect(key, [self._feedback], self._number + 1)
        (c,) = self._transport.receive(key).values()
        kept = c.clone()
        self._transport.give_back([c])
        return kept

    def send_feedback(self, number: int, c: Tensor) -> int:
        """Send what this worker makes of the classes to the worker before; return its bytes, 0 within a process."""
        target = self._number - 1
        self._transport.send(self._key("D", target, number), {"c": c}, target)
        return num_bytes({"c": c}) if self.counts else 0

    def done(self) -> None:
        """Say that what was received is read no more, so that its memory may be used again."""
        self._transport.give_back(self._held)
        self._held = []

    def flush(self) -> None:
        """Wait until everything sent has been taken."""
        self._transport.flush()

    def _expect(self, kind: str, number: int, upto: int, size: int) -> None:
        if self._incoming is None:  # within one process nothing is posted
            return
        specs = self._incoming.infer if kind == "E" else (*self._incoming.train, _MARK)
        for posted in range(max(self._posted[kind] + 1, number), upto + 1):
            sized = [spec if spec is _MARK else spec._replace(shape=(size, *spec.shape[1:])) for spec in specs]
            self._transport.expect(self._key(kind, self._number, posted), sized, self._number - 1)
        self._posted[kind] = max(self._posted[kind], upto)

    def _receive(self, kind: str, number: int) -> Carry:
        carry = self._transport.receive(self._key(kind, self._number, number))
        self._held = list(carry.values())
        return dict(carry)

    def _send(self, kind: str, number: int, tensors: Carry) -> None:
        target = self._number + 1
        self._transport.send(self._key(kind, target, number), tensors, target)

    def _outgoing(self, carry: Carry) -> Carry:
        """Return a carry with copies of what was received and is passed on as it is: that memory is used again."""
        received = {tensor.untyped_storage().data_ptr() for tensor in self._held}
        return {
            name: tensor.clone() if tensor.untyped_storage().data_ptr() in received else tensor
            for name, tensor in carry.items()
        }

    @staticmethod
    def _key(kind: str, position: int, number: int) -> Key:
        return Key(kind, position, number % _NUMBERS)


def _specs(carry: Carry, size: int) -> tuple[Spec, ...]:
    for name, tensor in carry.items():
        if tensor.dim() == 0 or len(tensor) != size:
            raise ValueError(f"{name} has shape {list(tensor.shape)} for {size} examples; what travels is batch-first")
    return tuple(Spec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in carry.items())
