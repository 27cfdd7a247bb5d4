"""From a client's trained change to what the server folds: codec, error feedback, rule, and what is remembered.

    delta -> encode -> bytes -> decode -> rule.contribute -> (tree, weight)

The payload is made and read even where both ends are one process, so the server's model is what a real exchange
would give, and the bytes that are counted are the lengths of real payloads.
"""

from __future__ import annotations

from typing import NamedTuple

from strategies.base import Contribution, Participation, ServerRule, Tree, Update
from strategies.compression import Codec, compensate
from trainers.cohort.remembered import Remembered


class Sent(NamedTuple):
    """What one client's update comes to."""

    contribution: Contribution
    state: Remembered
    num_bytes: int


class Uplink(NamedTuple):
    """How updates travel.

    Args:
        rule: the server's. codec: None sends the plain tree, of `plain_bytes`.
        error_feedback: what a codec leaves unsent is added to the client's next update.
        client_lr, momentum: of the clients' optimizer.
    """

    rule: ServerRule
    codec: Codec | None
    plain_bytes: int
    error_feedback: bool
    client_lr: float
    momentum: float

    @property
    def plain(self) -> bool:
        """Whether an update arrives as it was made."""
        return self.codec is None

    def send(self, update: Update, staleness: int, sent: Tree, state: Remembered, proximal: float, seed: int) -> Sent:
        """Pass one update through the codec and let the rule weigh it.

        Args:
            update: of the aggregated tensors only. staleness: of the version it was trained from.
            sent: what the rule sent beside the model. proximal: the term the client trained with.
            seed: of a codec that draws.
        """
        residual = state.residual
        if self.codec is None:
            num_bytes = self.plain_bytes
        else:
            codec, delta = self.codec.seeded(seed), update.tree
            if self.error_feedback:
                payload, decoded, residual = compensate(codec, delta, residual or None)
            else:
                payload = codec.encode(delta)
                decoded = codec.decode(payload)
            num_bytes = len(payload)
            update = update._replace(tree={name: t.to(delta[name].device) for name, t in decoded.items()})
        about = Participation(staleness, self.client_lr, self.momentum, proximal, sent, state.memory)
        contribution = self.rule.contribute(update, about)
        memory = state.memory if contribution.memory is None else contribution.memory
        return Sent(contribution, state._replace(memory=memory, residual=residual), num_bytes)
