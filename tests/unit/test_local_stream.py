"""The two ends of a stream, in one process: connections that break, and ends that come anew.

Each test runs in a process of its own, since the ends live as long as their process does.
"""

from __future__ import annotations

import functools
import multiprocessing
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from trainers.decoupled import stream
from trainers.decoupled.held import Held, Message, Place
from trainers.decoupled.links import Mark
from trainers.decoupled.stream import Inbox, Outbox

ALL = Place(0, 0, 0)


class Where(NamedTuple):
    life: int
    host: str
    port: int
    word: bytes


class Line:
    """What a band gives its ranks, of one rank that announces itself."""

    host, patience_s, rank, world_size, device = "127.0.0.1", 20.0, 0, 2, "cpu"

    def __init__(self) -> None:
        self.at: Where | None = None
        self.changed = threading.Condition()

    def announce(self, port: int, word: bytes) -> None:
        with self.changed:
            self.at = Where(self.at.life + 1 if self.at else 1, self.host, port, word)
            self.changed.notify_all()

    def find(self, rank: int, life: int, wait_s: float) -> Where | None:
        with self.changed:
            there = self.changed.wait_for(lambda: self.at is not None and self.at.life > life, wait_s)
            return self.at if there else None

    def kept(self, whole: int, known: int) -> Any:
        threading.Event().wait()

    def report(self, payload: Any) -> str:
        return ""


def outbox(line: Line, begin: Place = ALL) -> Outbox:
    return Outbox(line, Held(4, 50, begin))


def batch(step: int) -> Message:
    carry = {"h": torch.arange(6.0).reshape(2, 3) * step, "none": torch.zeros(0, 2), "y": torch.tensor([step, 7])}
    return Message(Place(step, 0, 0), Mark(step, 9, 70), carry)


def same(found: Message, step: int) -> bool:
    wanted = batch(step)
    equal = all(torch.equal(found.carry[name], tensor) for name, tensor in wanted.carry.items())
    return found[:2] == wanted[:2] and found.carry.keys() == wanted.carry.keys() and equal


def put(to: Outbox, *steps: int) -> None:
    for step in steps:
        to.put(batch(step))


def takes(inbox: Inbox, *steps: int) -> bool:
    return all(same(inbox.take(Place(step, 0, 0)), step) for step in steps)


def apart(test: Callable[[Line], None]) -> Callable[[], None]:
    """Run a test in a process of its own."""

    def run() -> None:
        stream.LOOK_S = 0.05
        test(Line())

    @functools.wraps(test)
    def started() -> None:
        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        process.join(60)
        assert process.exitcode == 0

    del started.__wrapped__  # type: ignore[attr-defined]  # pytest would look there for fixtures
    return started


@apart
def test_messages_arrive_as_they_were_and_a_connection_that_breaks_is_opened_again(line: Line) -> None:
    sender, inbox = outbox(line), Inbox(line, 0, ALL)
    put(sender, 1, 2)
    assert takes(inbox, 1, 2)
    assert sender._reader is not None
    sender._reader.shutdown(socket.SHUT_RDWR)
    put(sender, 3, 4)
    assert takes(inbox, 3, 4)


@apart
def test_a_sender_that_comes_anew_is_found_and_sends_what_is_new_alone(line: Line) -> None:
    lost, inbox = outbox(line), Inbox(line, 0, ALL)
    put(lost, 1, 2, 3)
    assert takes(inbox, 1, 2, 3)
    anew = outbox(line, Place.behind(1, 3))
    put(anew, 2, 3, 4, 5)
    assert takes(inbox, 4, 5)
    assert not anew.is_new(3) and anew.is_new(4)


@apart
def test_a_reader_that_comes_anew_is_sent_again_what_is_held(line: Line) -> None:
    sender, lost = outbox(line), Inbox(line, 0, ALL)
    put(sender, 1, 2, 3)
    assert takes(lost, 1, 2, 3)
    anew = Inbox(line, 0, Place.behind(1, 3))
    put(sender, 4)
    assert takes(anew, 2, 3, 4)


@apart
def test_who_does_not_know_the_word_hears_nothing(line: Line) -> None:
    sender = outbox(line)
    put(sender, 1)
    assert line.at is not None
    with socket.create_connection((line.host, line.at.port), timeout=20) as stranger:
        stranger.sendall(stream._HELLO.pack(secrets.token_bytes(16), *ALL, *ALL))
        assert stranger.recv(1) == b""
    assert takes(Inbox(line, 0, ALL), 1)
