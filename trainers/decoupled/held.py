"""What a worker has sent, held until no later worker can want it again; without sockets and threads.

A worker that is lost begins again at the last whole state and does its batches once more. So the one before it holds
every batch behind that state. Messages have places in one order, whoever sends them, so that a reader can say where
it is, and a sender that does batches again knows what has been had.

    held      messages behind the last whole state, and evaluations that are not known to the driver
    window    of those the reader has not taken yet there are at most so many: the queue between two workers
    limit     batches held at most; the sender waits for the next whole state rather than lose one
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from trainers.decoupled.links import Mark

NUM_EVALUATIONS = 2
"""Evaluations of which messages are held at most: the next one waits until the first is known to the driver."""


class Place(NamedTuple):
    """Where a message stands: a batch is `(number, 0, 0)`, a batch of test examples `(batch before, 1, index)`."""

    step: int
    tests: int
    index: int

    @classmethod
    def behind(cls, step: int, known: int) -> Place:
        """Return the place after which a worker wants messages that begins behind batch `step`.

        Args:
            known: last step of which the driver knows all. Where evaluations behind `step` are known, they are sent
                again if they are still held, and the reader passes them over.
        """
        return cls(0, 0, 0) if step == 0 > known else cls(step, 1, 1 << 30)


class Message(NamedTuple):
    """A batch on its way; `mark` is all zero for test examples."""

    place: Place
    mark: Mark
    carry: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.carry.values())


class Held:
    """The messages of one sender, in order.

    Args:
        window, limit: see above; the limit leaves room for all batches from one whole state to the next.
        begin: place after which the first message comes.

    Attributes:
        had: the last message that the present reader had when it came; None before one came.
        num_bytes, most_bytes: held now, and at most so far.
    """

    def __init__(self, window: int, limit: int, begin: Place) -> None:
        self._window, self._limit = window, limit
        self._messages: dict[Place, Message] = {}
        self._last = self._sent = self._taken = begin
        self._whole = self._known = -1
        self.had: Place | None = None
        self.num_bytes = self.most_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def fits(self, place: Place) -> bool:
        """Return whether a message may be put now."""
        if place > self._taken and sum(held > self._taken for held in self._messages) >= self._window:
            return False
        if place.tests:
            evaluations = {held.step for held in self._messages if held.tests}
            return place.step in evaluations or len(evaluations) < NUM_EVALUATIONS
        return sum(not held.tests for held in self._messages) < self._limit

    def put(self, message: Message) -> None:
        """Take the next message."""
        if message.place <= self._last:
            raise ValueError(f"{message.place} comes after {self._last}")
        self._last = message.place
        self._messages[message.place] = message
        self.num_bytes += message.num_bytes
        self.most_bytes = max(self.most_bytes, self.num_bytes)
        self._let_go()

    def read_by(self, had: Place, taken: Place) -> None:
        """Note that there is a reader, perhaps another than before: the last that it was sent and took."""
        self.had, self._sent, self._taken = had, had, taken

    def taken(self, place: Place) -> None:
        """Note that the reader has begun with a message, and so with all before it."""
        self._taken = max(self._taken, place)
        self._let_go()

    def next(self) -> Message | None:
        """Return the message that the reader is to be sent now; it counts as sent."""
        if self.had is None:
            return None
        ahead = [place for place in self._messages if place > self._taken][: self._window]
        place = next((place for place in ahead if place > self._sent), None)
        if place is None:
            return None
        self._sent = place
        return self._messages[place]

    def keep(self, whole: int, known: int) -> None:
        """Let go of batches up to `whole`, the last whole state, and of evaluations up to step `known`.

        What the present reader has not taken stays: it may be behind, if it came in the place of another.
        """
        self._whole, self._known = max(self._whole, whole), max(self._known, known)
        self._let_go()

    def is_new(self, step: int) -> bool:
        """Return whether batch `step` has not been had by the present reader."""
        return self.had is not None and Place(step, 0, 0) > self.had

    def _let_go(self) -> None:
        for place in [place for place in self._messages if not self._wanted(place)]:
            self.num_bytes -= self._messages.pop(place).num_bytes

    def _wanted(self, place: Place) -> bool:
        return place > self._taken or place.step > (self._known if place.tests else self._whole)
