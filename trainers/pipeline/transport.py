"""How tensors get from stage to stage: inside one process, or through torch.distributed from rank to rank.

Receives are posted ahead (`expect`) into buffers that are used again, so that a transfer runs beside the computation
of the micro-batch before it; sends do not wait for their receiver. A message is known by its key, so the order in which
the two sides get to it does not matter. Shapes are agreed before, in `boundaries.py`: no header travels with a tensor.

Left out: Ray's object store, which takes two to five times as long a boundary (benchmarks/transports.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from strategies.pipeline import Placement


class Spec(NamedTuple):
    """A tensor to come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Key(NamedTuple):
    """Which message: what kind, to which position of the model, of which micro-batch."""

    kind: str  # F: a carry, B: its gradients, T, U: a tied parameter's gradient and its sum, H, L, D: a header, its
    # length and a dry carry (in local learning: feedback of the classes), E: a carry of an evaluation beside training
    position: int
    microbatch: int


_KINDS = "FBTUHLDE"
NUM_POSITIONS, NUM_MICROBATCHES, _NUM_TENSORS = 1 << 9, 1 << 14, 1 << 5
"""What a message's tag has room for: with the kind 31 bits, which gloo takes."""
_IN_FLIGHT = 4
"""Messages of one kind to one rank that have not arrived yet; the next waits. gloo tells of one only by waiting."""


class Transport(Protocol):
    """Messages to and from other ranks; `rank` numbers are those of the pipeline's own process group.

    `sent_bytes` counts what has left this process.
    """

    sent_bytes: int

    def expect(self, key: Key, specs: Sequence[Spec], source: int) -> None:
        """Post a receive."""
        ...

    def ready(self, key: Key) -> bool:
        """Return whether `receive` would get what it waits for; a transport that blocks says yes."""
        ...

    def receive(self, key: Key) -> dict[str, Tensor]:
        """Return a message that was expected, waiting for it where that is possible."""
        ...

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        """Say that received tensors are read no more, so that their memory may be used again."""
        ...

    def let_go(self, tensors: Sequence[Tensor]) -> None:
        """Say that received tensors are read no more by whom they were given to, but autograd may still read them."""
        ...

    def send(self, key: Key, tensors: dict[str, Tensor], target: int) -> None:
        """Send; the tensors must not change until they have arrived, or `flush` has returned."""
        ...

    def flush(self) -> None:
        """Wait until everything sent has gone."""
        ...


class LocalTransport:
    """All stages in this process: a message is handed over as it is."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self._messages: dict[Key, dict[str, Tensor]] = {}

    def expect(self, key: Key, specs: Sequence[Spec], source: int) -> None:
        """Nothing to post: a message needs no buffer."""

    def ready(self, key: Key) -> bool:
        return key in self._messages

    def receive(self, key: Key) -> dict[str, Tensor]:
        return self._messages.pop(key)

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to use again: tensors are the sender's."""

    def let_go(self, tensors: Sequence[Tensor]) -> None:
        """Nothing is held."""

    def send(self, key: Key, tensors: dict[str, Tensor], target: int) -> None:
        assert key not in self._messages, f"{key} is sent twice"
        self._messages[key] = tensors

    def flush(self) -> None:
        """Nothing is on its way: what is sent is there."""

    def waiting(self) -> list[Key]:
        """Return what has been sent and not received."""
        return sorted(self._messages)


Way = tuple[str, bool]
"""A kind of message, F, B or none of them (""), and whether it goes to a higher rank."""

WAYS: tuple[Way, ...] = tuple((kind, up) for kind in ("F", "B", "") for up in (False, True))


def groups_of_ways(backend: str) -> dict[Way, dist.ProcessGroup]:
    """Return a process group for each way that messages go, where the backend needs it; every rank calls this.

    nccl ignores tags, and does what two ranks have in one group one after the other, whichever way it goes: a receive
    posted ahead would stop the send that it waits for. A schedule's messages of one kind and direction are taken in the
    order they are sent (`strategies.pipeline.problems`). gloo goes by tags, and needs one group only.
    """
    return {way: dist.new_group() for way in WAYS} if backend == "nccl" else {}


class GroupTransport:
    """Rank to rank through a torch.distributed group (gloo or nccl).

    Args:
        ranks: the global rank of each rank of the pipeline. rank: this one's place among them.
        groups: as of `groups_of_ways`; ways that are missing go through the default group.
        in_flight: messages of one kind to one rank that have not arrived; `send` waits until there are fewer.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        rank: int,
        device: torch.device,
        groups: Mapping[Way, dist.ProcessGroup] | None = None,
        in_flight: int = _IN_FLIGHT,
    ) -> None:
        self._groups = groups or {}
        self._in_flight = in_flight
        self.sent_bytes = 0
        self._ranks = list(ranks)
        self._rank = rank
        self._device = device
        self._local = LocalTransport()  # between chunks of this very rank
        self._expected: dict[Key, tuple[dict[str, Tensor], list[dist.Work]]] = {}
        self._sent: dict[tuple[int, str], deque[list[tuple[dist.Work, Tensor]]]] = {}
        self._free: dict[tuple[tuple[int, ...], torch.dtype], list[Tensor]] = {}
        self._lent: dict[int, Tensor] = {}

    def expect(self, key: Key, specs: Sequence[Spec], source: int) -> None:
        if source == self._rank:
            return
        tensors, works, group = {}, [], self._group(key, source, self._rank)
        for index, spec in enumerate(specs):
            tensors[spec.name] = tensor = self._buffer(spec)
            works.append(dist.irecv(tensor, self._ranks[source], group, tag=self._tag(key, index)))
        self._expected[key] = (tensors, works)

    def ready(self, key: Key) -> bool:
        return True

    def receive(self, key: Key) -> dict[str, Tensor]:
        if key not in self._expected:
            return self._local.receive(key)
        tensors, works = self._expected.pop(key)
        for work in works:
            work.wait()
        return tensors

    def give_back(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            buffer = self._lent.pop(tensor.data_ptr(), None)
            if buffer is not None:
                self._free.setdefault((tuple(buffer.shape), buffer.dtype), []).append(buffer)

    def let_go(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self._lent.pop(tensor.data_ptr(), None)

    def send(self, key: Key, tensors: dict[str, Tensor], target: int) -> None:
        if target == self._rank:
            self._local.send(key, tensors, target)
            return
        sent = self._sent.setdefault((target, key.kind), deque())
        while len(sent) >= self._in_flight:
            _wait(sent.popleft())
        whole = [tensor.to(self._device).contiguous() for tensor in tensors.values()]
        group = self._group(key, self._rank, target)
        self.sent_bytes += sum(tensor.numel() * tensor.element_size() for tensor in whole)
        sent.append(
            [
                (dist.isend(tensor, self._ranks[target], group, tag=self._tag(key, index)), tensor)
                for index, tensor in enumerate(whole)
            ]
        )

    def flush(self) -> None:
        for sent in self._sent.values():
            while sent:
                _wait(sent.popleft())

    def meet(self, placement: Placement) -> None:
        """Send a number over every link of a pipeline, on all ranks in the same order.

        nccl joins the two ranks of a link when both first use it, and holds them until then; a rank that first met
        another for a receive posted ahead would be held before it could send what leads to that receive.
        """
        last, number = placement.num_positions - 1, [Spec("0", (1,), torch.float32)]
        forward = [(Key("F", p, 0), p - 1) for p in range(1, last + 1)]
        for key, source in (*forward, *((Key("B", p, 0), p + 1) for p in reversed(range(last)))):
            sender, taker = placement.stage(source), placement.stage(key.position)
            if sender == taker:
                continue
            if self._rank == taker:
                self.expect(key, number, sender)
                self.give_back(list(self.receive(key).values()))
            elif self._rank == sender:
                self.send(key, {"0": torch.zeros(1)}, taker)
                self.flush()
        self.sent_bytes = 0

    def _group(self, key: Key, source: int, target: int) -> dist.ProcessGroup | None:
        return self._groups.get((key.kind if key.kind in "FB" else "", target > source))

    def _buffer(self, spec: Spec) -> Tensor:
        free = self._free.get((spec.shape, spec.dtype))
        tensor = free.pop() if free else torch.empty(spec.shape, dtype=spec.dtype, device=self._device)
        self._lent[tensor.data_ptr()] = tensor
        return tensor

    @staticmethod
    def _tag(key: Key, index: int) -> int:
        """Number a message; what asks for too many is refused before a run where it is known then."""
        if key.position >= NUM_POSITIONS or key.microbatch >= NUM_MICROBATCHES or index >= _NUM_TENSORS:
            most = f"{NUM_POSITIONS} positions, {NUM_MICROBATCHES} micro-batches, {_NUM_TENSORS} tensors"
            raise ValueError(f"{key} with tensor {index}: at most {most}")
        place = _KINDS.index(key.kind) * NUM_POSITIONS + key.position
        return (place * NUM_MICROBATCHES + key.microbatch) * _NUM_TENSORS + index


def _wait(works: Sequence[tuple[dist.Work, Tensor]]) -> None:
    for work, _ in works:
        work.wait()
