"""Rows of vertices between the ways of one stage: what graph parallelism costs, layer after layer.

Messages are numbered by site, slot and sender, so a pipeline's transport carries them; nothing is sent where no vertex
is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trainers.pipeline.transport import NUM_MICROBATCHES, NUM_POSITIONS, Key, Spec, Transport

NUM_MESSAGES = NUM_POSITIONS * NUM_MICROBATCHES
"""What a transport can tell apart of one kind: sites x (slots + 1) x ways, an evaluation being a slot of its own."""


class Exchange:
    """One way's side.

    Args:
        transport: among the ways of this stage, by their numbers; None where there is one way.
        slots: of an epoch.
    """

    def __init__(self, transport: Transport | None, way: int, ways: int, slots: int) -> None:
        self._transport, self.way, self.ways, self._slots = transport, way, ways, slots

    @property
    def sent_bytes(self) -> int:
        """Bytes that have left this rank."""
        return 0 if self._transport is None else self._transport.sent_bytes

    def swap(
        self, kind: Literal["F", "B"], site: int, slot: int, rows: Sequence[Tensor | None], room: Sequence[Tensor]
    ) -> None:
        """Send each way its rows and wait for those of the others.

        Args:
            site: the place in the model, counted on this stage. slot: of the epoch; one more in an evaluation.
            rows: for each way, what it needs; empty or None sends nothing.
            room: for each way, where what comes from it is written; empty where nothing comes.
        """
        if self._transport is None:
            return
        others = [way for way in range(self.ways) if way != self.way]
        for way in others:
            if len(room[way]):
                spec = Spec("0", tuple(room[way].shape), room[way].dtype)
                self._transport.expect(self._key(kind, site, slot, way), [spec], way)
        for way in others:
            given = rows[way]
            if given is not None and len(given):
                self._transport.send(self._key(kind, site, slot, self.way), {"0": given}, way)
        for way in others:
            if len(room[way]):
                came = self._transport.receive(self._key(kind, site, slot, way))["0"]
                with torch.no_grad():
                    room[way].copy_(came)
                self._transport.give_back([came])

    def flush(self) -> None:
        """Wait until everything sent has gone."""
        if self._transport is not None:
            self._transport.flush()

    def _key(self, kind: str, site: int, slot: int, sender: int) -> Key:
        number = (site * (self._slots + 1) + slot) * self.ways + sender
        return Key(kind, *divmod(number, NUM_MICROBATCHES))
