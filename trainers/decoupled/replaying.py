"""One worker of an asynchronous run: it trains on what its ring buffer has, in DGL's order, at its own pace.

    receiving    a thread puts every batch that arrives into the buffer (`strategies.local.replay`); the sender never
                 waits for the training of the receiver, and batches that are not read in time are lost
    a step       on the batch that the buffer gives, which may be an old one, or one used before
    a quota      evaluations are after the same number of steps of every worker: one that has done them waits until all
                 messages of the worker before have come, one that has fewer does them on what it has

Bits depend on who is faster, so this is no reproducible way to train; the learning rate and seeds go by a worker's own
steps. A wish to stop holds from the end of the quota. Checkpoints hold the buffers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from strategies.local import Carry
from strategies.local.replay import Entry, Replay
from trainers.decoupled.links import MARK_BYTES, Link, Mark, num_bytes
from trainers.decoupled.worker import Worker
from trainers.loop import Outcome
from trainers.pipeline.state import Trees

Deliver = Callable[[int, Carry, Mark], None]
"""Sends message `number`, a worker's own step, on to the next worker."""


class ReplayingWorker(Worker):
    """A worker with a buffer.

    Args:
        quota: steps between two evaluations; see `Settings.quota`. begin: steps done before.
        deliver: None for the worker's own link.
    """

    def __init__(self, *args: Any, begin: int = 0, deliver: Deliver | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        settings = self.settings
        self.buffer = Replay(settings.buffer, settings.max_reuse)
        self._deliver = deliver or self.link.send
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self.heard = Mark(0, 0, 0)
        self.num_heard = self.num_steps = begin
        self._sent = self._told_bytes = 0
        self._stale, self._again = [0, 0], 0

    # ------------------------------------------------------------------------------------------------- receiving

    def listen(self, inbox: Link) -> None:
        """Receive from the worker before until its last message, in a thread of its own.

        Args:
            inbox: a link that nothing else receives from.
        """
        if not self._is_first:
            threading.Thread(target=self._listen, args=(inbox,), name="receiving", daemon=True).start()

    def _listen(self, inbox: Link) -> None:
        try:
            while self.num_heard < (self.heard.last or self.settings.steps):
                carry, mark = inbox.receive(self.num_heard + 1, self.settings.batch_size, self.settings.steps)
                self.hear({name: tensor.clone() for name, tensor in carry.items()}, mark)
                inbox.done()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def hear(self, carry: Carry, mark: Mark) -> None:
        """Take a message of the worker before; the tensors are the buffer's from now on."""
        with self._changed:
            self.buffer.put(mark.batch, carry)
            self.heard = mark
            self.num_heard += 1
            self._changed.notify_all()

    # --------------------------------------------------------------------------------------------------- a batch

    def ready(self) -> bool:
        """Return whether a step would find a batch, and be within the quota, without waiting for other workers."""
        if self._is_first:
            return True
        number = self.num_steps + 1
        return self.buffer.ready(limited=self._more(number)) and not self._waits(number)

    def step(self, number: int, stop: bool = False) -> Outcome:
        """As `Worker.step`, on a batch of the buffer."""
        outcome = super().step(number, stop)
        self.num_steps = number
        return outcome

    def _take(self, number: int, stop: bool) -> tuple[Carry, Mark]:
        if self._is_first:
            return super()._take(number, stop)
        with self._changed:  # receiving ends in a message or, after the group's timeout, in a failure
            self._changed.wait_for(lambda: self._failure is not None or self.ready())
            if self._failure is not None:
                raise self._failure
            entry = self.buffer.take(limited=self._more(number))
            heard = self.heard
        assert entry is not None
        self._last = heard.last
        self._stale[0] += heard.batch - entry.batch
        self._stale[1] += 1
        self._again += entry.uses > 0
        return entry.carry, Mark(entry.batch, heard.last, heard.sent_bytes)

    def _more(self, number: int) -> bool:
        """Return whether the worker before will send more before the quota of step `number` is done."""
        return self.num_heard < self.settings.end_of_quota(number)

    def _waits(self, number: int) -> bool:
        """Return whether step `number` must know all that the worker before says: whether it is the last."""
        return number == self.settings.end_of_quota(number) and self._more(number)

    def _last_after(self, number: int) -> int:
        return self.settings.end_of_quota(number)

    def _pass_on(self, number: int, carry: Carry, mark: Mark) -> None:
        if self.link.counts:
            mark = mark._replace(sent_bytes=mark.sent_bytes + self._sent)  # the link adds this message
            self._sent += MARK_BYTES + num_bytes(carry)
        self._deliver(number, carry, mark)

    def _sent_bytes(self, mark: Mark) -> int:
        before, self._told_bytes = self._told_bytes, mark.sent_bytes
        return mark.sent_bytes - before

    # ------------------------------------------------------------------------------------------------ evaluation

    def evaluate(self, number: int) -> Mapping[str, float]:
        """As `Worker.evaluate`, with how old batches were, in batches of the worker before, and the share used again;
        the next worker has then done its quota, too."""
        found = dict(super().evaluate(number))
        self.link.flush()
        age, steps = self._stale
        if steps:
            found[f"workers/staleness_{self.number}"] = age / steps
            found[f"workers/reused_{self.number}"] = self._again / steps
            found[f"workers/unused_{self.number}"] = float(self.buffer.num_unused)
        self._stale, self._again, self.buffer.num_unused = [0, 0], 0, 0
        return found

    # ----------------------------------------------------------------------------------------------------- state

    def export(self) -> dict[str, dict[str, Tensor]]:
        """As `Worker.export`, with the buffer: `replay` and, of each batch, number and uses."""
        trees = super().export()
        with self._changed:
            entries = self.buffer.entries
        if entries:
            counts = torch.tensor([[entry.batch, entry.uses] for entry in entries])
            trees["replay"] = {f"{self.number}.counts": counts, **_named(self.number, entries)}
        return trees

    def restore(self, trees: Trees) -> None:
        """As `Worker.restore`."""
        super().restore(trees)
        held = trees.get("replay", {})
        counts = held.get(f"{self.number}.counts", torch.empty(0, 2, dtype=torch.int64)).tolist()
        for place, (batch, uses) in enumerate(counts):
            prefix = f"{self.number}.{place}."
            carry = {
                name.removeprefix(prefix): tensor.clone().to(self._device)
                for name, tensor in held.items()
                if name.startswith(prefix)
            }
            self.buffer.put(batch, carry, uses)


def _named(number: int, entries: tuple[Entry, ...]) -> dict[str, Tensor]:
    return {
        f"{number}.{place}.{name}": tensor
        for place, entry in enumerate(entries)
        for name, tensor in entry.carry.items()
    }
