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
from trainers.decoupled.held import Held, Message, Place
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
