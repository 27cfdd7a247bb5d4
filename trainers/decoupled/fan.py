"""The links of a worker that is one of several replicas, or has several before or behind it: rows go to their owners.

A batch's rows lie with the replicas of a worker in a row (`replicas.rows_of`). Whoever sends, sends each replica of the
next worker those of its rows that are that one's, over a link of the two; whoever receives puts them together. Test
examples pass between the first replicas alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from strategies.local import Carry
from trainers.decoupled.links import Carried, Link, Mark
from trainers.decoupled.replicas import rows_of
from trainers.decoupled.settings import Settings
from trainers.pipeline.transport import GroupTransport


class Strand(NamedTuple):
    """A link with one process. The rows of a batch that go over it are `rows`, counted from the sender's first."""

    link: Link
    rows: slice


class Fan(Link):
    """Several links as one.

    Args:
        before, behind: strands from the worker before, and to the one behind, in the order of rows.
    """

    counts = True

    def __init__(self, before: Sequence[Strand], behind: Sequence[Strand]) -> None:
        self._before, self._behind = before, behind

    def receive(self, number: int, size: int, last: int) -> tuple[Carry, Mark]:
        """As `Link.receive`; of the batch's `size` rows come this replica's."""
        came = [strand.link.receive(number, _length(strand.rows), last) for strand in self._before]
        marks = [mark for _, mark in came]
        carry = {name: torch.cat([part[name] for part, _ in came]) for name in came[0][0]}
        return carry, Mark(number, max(mark.last for mark in marks), sum(mark.sent_bytes for mark in marks))

    def send(self, number: int, carry: Carry, mark: Mark) -> None:
        """As `Link.send`; bytes sent before are told to the first receiver alone."""
        for index, strand in enumerate(self._behind):
            part = {name: tensor[strand.rows] for name, tensor in carry.items()}
            strand.link.send(number, part, mark if index == 0 else mark._replace(sent_bytes=0))

    def receive_test(self, index: int, sizes: Sequence[int]) -> Carry:
        """As `Link.receive_test`; from the first replica, for the first."""
        return {name: tensor.clone() for name, tensor in self._before[0].link.receive_test(index, sizes).items()}

    def send_test(self, index: int, carry: Carry) -> None:
        """As `Link.send_test`; from the first replica to the first."""
        self._behind[0].link.send_test(index, carry)

    def done(self) -> None:
        """As `Link.done`."""
        for strand in self._before:
            strand.link.done()

    def flush(self) -> None:
        """As `Link.flush`."""
        for strand in self._behind:
            strand.link.flush()


def fan(settings: Settings, number: int, replica: int, incoming: Carried | None, device: torch.device) -> Fan:
    """Return the links of one replica of a worker.

    Args:
        incoming: what the worker receives; None for the first.
    """
    places, size = settings.places(), settings.batch_size
    rank = places.index((number, replica))
    own = rows_of(size, replica, settings.num_replicas(number))
    strands: dict[int, list[Strand]] = {-1: [], 1: []}
    for way, found in strands.items():
        worker = number + way
        others = settings.num_replicas(worker) if 0 <= worker < settings.num_workers else 0
        for other in range(others):
            theirs = rows_of(size, other, others)
            start, stop = max(own.start, theirs.start), min(own.stop, theirs.stop)
            if start >= stop:
                continue
            pair, place = sorted((rank, places.index((worker, other)))), int(way < 0)
            transport = GroupTransport(pair, place, device, in_flight=1)
            link = Link(transport, place, incoming if way < 0 else None, settings.queue, counts=True)
            first = (own if way > 0 else theirs).start
            found.append(Strand(link, slice(start - first, stop - first)))
    return Fan(strands[-1], strands[1])


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)
