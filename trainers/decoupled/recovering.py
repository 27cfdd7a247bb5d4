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
from trainers import loop, wire
from trainers.data.base import Dataset
from trainers.decoupled.held import Held, Message, Place
from trainers.decoupled.links import MARK_BYTES, Link, Mark, num_bytes
from trainers.decoupled.settings import Settings, build
from trainers.decoupled.stream import Inbox, Line, Outbox
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


def run(
    line: Line,
    *,
    settings: Mapping[str, Any],
    dataset: Dataset,
    origin_s: float,
    start: Mapping[str, Any],
    begin: int,
    evaluate_every: int,
    checkpoint_every: int,
    known: int | None = None,
    reached: int = 0,
) -> None:
    """Train from batch `begin + 1` to the last, or until the driver says `stop`.

    Args:
        settings, start, begin: as in `program.run`.
        known: in the place of a lost worker, the last step that the driver knows all of. reached: the last step that
            the last worker told of.
    """
    plain = Settings(**settings)
    number, last = line.rank, line.rank == plain.num_workers - 1
    place, limit = Place.behind(begin, -1 if known is None else known), limit_of(plain, checkpoint_every)
    built = build(plain, dataset)
    outbox = None if last else Outbox(line, Held(plain.queue, limit, place))
    inbox = Inbox(line, number - 1, place) if number else None
    link = HeldLink(inbox, outbox, begin)
    device = torch.device(line.device)
    decides = 0 if known is None else begin + limit
    worker = RecoveringWorker(
        plain, dataset, built, number, link, device, origin_s=origin_s, known=known, decides=decides
    )
    worker.restore({tree: wire.decode(payload) for tree, payload in start.items()})
    plan = loop.Plan(
        begin,
        plain.steps,
        evaluate_every,
        checkpoint_every,
        speaks=last,
        drawn=number,
        saves=number,
        measures=True,
        asks=number == 0,
    )
    if known is None:
        loop.train(line, worker, plan)
        return
    telling = _Telling(worker, line, outbox, begin, reached)
    loop.train(line, telling, plan)
    telling.tell(plain.steps, worker.num_done - begin)
