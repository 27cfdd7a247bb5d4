"""What the peers engine asks of its workers, and what they answer: plain values, trees encoded."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from strategies.base import Tree


class PeerWork(NamedTuple):
    """One action of one peer, as a worker is asked for it.

    Args:
        senders: of the models it has heard, ascending. places: where each of these is among the messages given.
        num_steps: local steps; 0 as the settings say.
    """

    peer: int
    iteration: int
    num_steps: int
    senders: tuple[int, ...]
    places: tuple[int, ...]


class Heard(NamedTuple):
    """The models that a peer integrates.

    Args:
        tree: name -> tensor [n, ...], in the order of the senders.
    """

    senders: tuple[int, ...]
    tree: Tree

    def rows(self, like: Tree) -> Tensor:
        """Return them as vectors [n, d] in the order of the names of `like`."""
        parts = [self.tree[name].flatten(1) for name in like]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class ActionReport(NamedTuple):
    """One action's figures.

    Args:
        loss: of its local steps; NaN when it made none.
        num_steps: local steps made. num_heard: models it was given. num_used: of these, those that changed its own.
        num_rejected: models refused before anything looked at them, for what they are.
        message_bytes: length of what it sends to each partner. extra_bytes: of what else it exchanged.
        deviation: how far what it mixed is from the mean of what honest peers sent and its own, in lengths of that
            mean; NaN where it heard no attacker.
    """

    peer: int
    loss: float
    num_steps: int
    num_heard: int
    num_used: int
    num_rejected: int
    message_bytes: int
    extra_bytes: int = 0
    deviation: float = math.nan


class BlockReport(NamedTuple):
    """What a block of actions comes to, its rows in the order they were asked for.

    Args:
        states: of the peers afterwards. messages: what each sends; both name -> tensor [k, ...], encoded.
    """

    states: pa.Buffer
    messages: pa.Buffer
    actions: tuple[ActionReport, ...]
    compute_s: float
    wire_s: float


class PeerEvalReport(NamedTuple):
    """One peer's model on test examples."""

    peer: int
    num_correct: int
    loss_sum: float
