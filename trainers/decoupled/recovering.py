"""Workers of a lossless run that may be lost one by one: what was sent is held, and sent again to one that comes anew.

A worker that is started in the place of a lost one begins at the last whole state, as all did at theirs. It does its
batches again, with the same bits, on what the worker before has held; the first draws them from the data. What it makes
again the next worker has had, up to a batch, and is not sent it. The others notice a wait.

    begun again   evaluations that the driver knows are passed over; others are done again
    a wish to     stop counts on a first worker that is begun again only where no worker can be yet: the batch that it
                  makes the last must not be behind another
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from strategies.local import Carry
from trainers import loop
from trainers.decoupled.held import NUM_EVALUATIONS, Held, Message, Place
from trainers.decoupled.links import MARK_BYTES, Link, Mark, num_bytes
from trainers.decoupled.settings import Settings, build
from trainers.decoupled.stream import Inbox, Line, Outbox
from trainers.decoupled.task import Task
from trainers.decoupled.worker import Worker
from trainers.loop import Outcome


class HeldLink(Link):
    """The links of one worker, by stream.

    Args:
        inbox, outbox: None for the first and the last. begin: batches done before.
    """

    counts = True

    def __init__(self, inbox: Inbox | None, outbox: Outbox | None, begin: int) -> None:
        self._inbox, self._outbox, self._step = inbox, outbox, begin
        self._held = []

    def receive(self, number: int, size: int, last: int) -> tuple[Carry, Mark]:
        """As `Link.receive`."""
        self._step = number
        message = self._take(Place(number, 0, 0))
        return dict(message.carry), message.mark

    def send(self, number: int, carry: Carry, mark: Mark) -> None:
        """As `Link.send`; the tensors are held, and must not change."""
        self._step = number
        tensors = self._outgoing(carry)
        mark = mark._replace(sent_bytes=mark.sent_bytes + MARK_BYTES + num_bytes(tensors))
        self._put(Message(Place(number, 0, 0), mark, tensors))

    def receive_test(self, index: int, sizes: Sequence[int]) -> Carry:
        """As `Link.receive_test`."""
        return dict(self._take(Place(self._step, 1, index)).carry)

    def send_test(self, index: int, carry: Carry) -> None:
        """As `Link.send_test`."""
        self._put(Message(Place(self._step, 1, index), Mark(0, 0, 0), self._outgoing(carry)))

    def done(self) -> None:
        """As `Link.done`."""
        self._held = []

    def flush(self) -> None:
        """Nothing to wait for: what is sent is held until it is wanted no more."""

    @property
    def most_bytes(self) -> int:
        """Bytes that were held at most so far."""
        return self._outbox.held.most_bytes if self._outbox is not None else 0

    def _take(self, place: Place) -> Message:
        assert self._inbox is not None
        message = self._inbox.take(place)
        self._held = list(message.carry.values())
        return message

    def _put(self, message: Message) -> None:
        assert self._outbox is not None
        self._outbox.put(message)


class RecoveringWorker(Worker):
    """A worker that may have been started in the place of a lost one.

    Args:
        known: last step that the driver knows all of; None where no worker was lost.
        decides: first step after which this worker may end the run, where it is the first.
    """

    def __init__(self, *args: Any, known: int | None, decides: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._known = -1 if known is None else known
        self._decides = decides
        self.num_done = 0

    def step(self, number: int, stop: bool = False) -> Outcome:
        """As `Worker.step`."""
        self.num_done = number
        return super().step(number, stop and number >= self._decides)

    def evaluate(self, number: int) -> Mapping[str, float]:
        """As `Worker.evaluate`, with the bytes held at most; nothing where the driver knows it all."""
        if number <= self._known:
            self._losses = [[] for _ in self._modules]
            return {}
        found = dict(super().evaluate(number))
        assert isinstance(self.link, HeldLink)
        return found if self._is_last else {**found, f"workers/held_bytes_{self.number}": float(self.link.most_bytes)}


class _Telling:
    """A worker's steps for `loop.train`, and word to the driver once a worker is as far as the lost one was."""

    def __init__(self, worker: RecoveringWorker, line: Line, outbox: Outbox | None, begin: int, reached: int) -> None:
        self._worker, self._line, self._outbox = worker, line, outbox
        self._begin, self._reached, self._told = begin, reached, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def step(self, number: int, stop: bool) -> Outcome:
        outcome = self._worker.step(number, stop)
        if number > self._reached if self._outbox is None else self._outbox.is_new(number):
            self.tell(number, number - 1 - self._begin)
        return outcome

    def tell(self, step: int, replayed: int) -> None:
        """Say once that this worker is as far as the lost one was, and how many batches that took."""
        if not self._told:
            self._told = True
            self._line.report({"kind": "caught_up", "step": step, "replayed": replayed})


def limit_of(settings: Settings, checkpoint_every: int) -> int:
    """Return how many batches a worker holds at most: those between two whole states, and those between the workers."""
    return checkpoint_every + settings.queue * settings.num_workers


def most_bytes(settings: Settings, checkpoint_every: int, sent_bytes: int, test_bytes: int) -> int:
    """Return how many bytes a worker holds at most.

    Args:
        sent_bytes: of what it sends for a batch. test_bytes: for an evaluation.
    """
    return limit_of(settings, checkpoint_every) * sent_bytes + NUM_EVALUATIONS * test_bytes


def run(line: Line, *, known: int | None = None, reached: int = 0, **given: Any) -> None:
    """Train from a state on to the last batch, or until the driver says `stop`.

    Args:
        known: in the place of a lost worker, the last step that the driver knows all of. reached: the last step that
            the last worker told of.
        given: of `task.Task`.
    """
    task = Task(**given)
    plain, begin, number = task.plain, task.begin, line.rank
    place, limit = Place.behind(begin, -1 if known is None else known), limit_of(plain, task.checkpoint_every)
    built = build(plain, task.dataset)
    outbox = Outbox(line, Held(plain.queue, limit, place)) if number + 1 < plain.num_workers else None
    inbox = Inbox(line, number - 1, place) if number else None
    worker = RecoveringWorker(
        plain,
        task.dataset,
        built,
        number,
        HeldLink(inbox, outbox, begin),
        torch.device(line.device),
        origin_s=task.origin_s,
        known=known,
        decides=0 if known is None else begin + limit,
    )
    task.restore(worker)
    plan = task.plan(line.rank)
    if known is None:
        loop.train(line, worker, plan)
        return
    telling = _Telling(worker, line, outbox, begin, reached)
    loop.train(line, telling, plan)
    telling.tell(plain.steps, worker.num_done - begin)
