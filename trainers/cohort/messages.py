"""What the rounds engine asks of its workers, and what they answer: plain values, trees encoded.

Lists of a span's participations and reports travel as `Rows`, tuples of tuples: a pickler writes those by itself, where
each object of a class costs a call into Python, and Ray packs what is in a list one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from strategies.base import Fold
from strategies.federated.stacking import Stack
from trainers import wire

Rows = tuple[tuple[Any, ...], ...]


class Work(NamedTuple):
    """One participation, as a worker is asked for it.

    Args:
        client: who. version: the released model it starts from.
        repeat: how many times this client has started from this version before.
        num_steps: local steps; 0 as the settings say. staleness: server steps since `version`.
        state: what is remembered of the client, encoded; None when it is new, or nothing is kept.
    """

    client: int
    version: int
    repeat: int = 0
    num_steps: int = 0
    staleness: int = 0
    state: pa.Buffer | None = None


class ClientReport(NamedTuple):
    """One participation's figures. `failed` is empty, or says why its update was dropped.

    Args:
        uplink_bytes: length of what the client sent.
    """

    client: int
    num_examples: int
    num_steps: int
    loss: float
    failed: str = ""
    staleness: int = 0
    uplink_bytes: int = 0


class SpanAnswer(NamedTuple):
    """The contributions of a span of blocks on the wire: their sum, or all of them.

    Args:
        tree: of a sum, or of rows. weights: of the sum, or of each row. clients: of each row; empty for a sum.
    """

    tree: pa.Buffer
    weights: tuple[float, ...]
    num_clients: int
    clients: tuple[int, ...] = ()

    @classmethod
    def of(cls, part: Fold | Stack | None) -> SpanAnswer | None:
        """Encode what a span came to; `None` when nobody contributed."""
        if part is None:
            return None
        if isinstance(part, Fold):
            return cls(wire.encode(part.total), (part.weight,), part.num_clients)
        return cls(wire.encode(part.tree), tuple(part.weights.tolist()), len(part.clients), part.clients)

    def decode(self) -> Fold | Stack:
        """Return what was encoded."""
        tree = wire.decode(self.tree)
        if self.clients:
            return Stack(tree, self.clients, torch.tensor(self.weights, dtype=torch.float64))
        return Fold(tree, self.weights[0], self.num_clients)


class SpanReport(NamedTuple):
    """What a span of blocks comes to, and figures a client.

    Args:
        answer: None when every client of the span was dropped. clients: `ClientReport`s as rows.
        states: what is to be remembered of its clients from now on, encoded.
    """

    answer: SpanAnswer | None
    clients: Rows
    states: Mapping[int, pa.Buffer]
    compute_s: float
    wire_s: float


def as_rows(blocks: Sequence[Sequence[Work]]) -> tuple[Rows, ...]:
    """Return blocks of participations as they travel."""
    return tuple(tuple(map(tuple, block)) for block in blocks)


class EvalReport(NamedTuple):
    """Sums over a slice of the test set: predictions, correct ones, and loss in float64."""

    num_predictions: int
    num_correct: int
    loss_sum: float
    compute_s: float
    wire_s: float


class PersonalReport(NamedTuple):
    """A client's own model on the examples it held out; `state` is new when this was its best so far."""

    client: int
    num_predictions: int
    num_correct: int
    loss_sum: float
    state: pa.Buffer | None = None
