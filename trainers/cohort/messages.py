"""What the rounds engine asks of its workers, and what they answer: plain values, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa


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


class SpanReport(NamedTuple):
    """What a span of blocks comes to: the encoded sum of its contributions, and figures a client.

    Args:
        total: None when every client of the span was dropped.
        states: what is to be remembered of its clients from now on, encoded.
    """

    total: pa.Buffer | None
    weight: float
    num_clients: int
    clients: tuple[ClientReport, ...]
    states: Mapping[int, pa.Buffer]
    compute_s: float
    wire_s: float


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
