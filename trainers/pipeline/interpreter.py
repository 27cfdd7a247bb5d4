"""A rank runs its list of actions: receive, compute, send, and note when.

    F   receive a carry, run the chunk forward, send what came out on
    B   run the micro-batch again where it was not kept, receive the gradients, run backward, send gradients back
    W   weight gradients that B has put aside

Receives are posted two ahead, so that they arrive during the action before. Recomputation begins before the gradient
has arrived. The schedule is data (`strategies.pipeline`); nothing here decides an order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from strategies.pipeline import Action, Placement
from trainers.pipeline.boundaries import Boundary
from trainers.pipeline.chunk import Carry, Chunk, Run, main
from trainers.pipeline.transport import Key, Spec, Transport

_AHEAD = 2


class Span(NamedTuple):
    """What an action took: it waited from `begin_s` to `ready_s` and computed until `end_s`, on this rank's clock.

    `kind` is that of the action, or R for the recomputation before a B.
    """

    kind: str
    chunk: int
    microbatch: int
    begin_s: float
    ready_s: float
    end_s: float


class Batch(NamedTuple):
    """What a rank needs to know of a step's micro-batches, by their number.

    Args:
        sizes: examples. weights: what each one's loss is multiplied by. seed: of the step.
        inputs, targets: of those ranks that hold the model's first and last layers; None elsewhere.
        keep: whether autograd records the forward, so that nothing is recomputed.
        score: where it is given nothing is trained, and the last rank calls it with what the model returns.
    """

    sizes: Sequence[int]
    weights: Sequence[float]
    seed: int
    inputs: Callable[[int], Tensor] | None
    targets: Callable[[int], Tensor] | None
    keep: Sequence[bool]
    score: Callable[[int, Any], None] | None = None


class Interpreter:
    """One rank's step through its actions.

    Args:
        chunks: this rank's, by their number. placement: which rank holds which position.
        boundaries: of each chunk, by size of micro-batch and whether it trains.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        placement: Placement,
        transport: Transport,
        boundaries: Sequence[Mapping[tuple[int, bool], Boundary]],
        batch: Batch,
        actions: Sequence[Action],
    ) -> None:
        self._chunks, self._placement = chunks, placement
        self._transport, self._boundaries, self._batch = transport, boundaries, batch
        self._actions = list(actions)
        self._next = 0
        self._begin_s = 0.0
        self._to_receive = [found for action in actions for found in self._receives(action)]
        self._posted = self._received = 0
        self._read_by_weights: dict[tuple[int, int], list[Tensor]] = {}
        self._last = {action.chunk: number for number, action in enumerate(self._actions) if action.kind != "F"}
        self.losses: dict[int, Tensor] = {}
        self.spans: list[Span] = []

    @property
    def done(self) -> bool:
        return self._next == len(self._actions)

    @property
    def finishes(self) -> int | None:
        """The chunk to whose gradients the next action is the last to add; None for other actions."""
        chunk = self._actions[self._next].chunk
        return chunk if self._last.get(chunk) == self._next else None

    def ready(self) -> bool:
        """Return whether the next action has all that it waits for."""
        if self.done:
            return False
        return all(self._transport.ready(key) for key, _, _ in self._receives(self._actions[self._next]))

    def step(self) -> None:
        """Do the next action."""
        while self._posted < min(self._received + _AHEAD, len(self._to_receive)):
            self._transport.expect(*self._to_receive[self._posted])
            self._posted += 1
        action = self._actions[self._next]
        self._begin_s = time.perf_counter()
        ready_s = {"F": self._forward, "B": self._backward, "W": self._weigh}[action.kind](action)
        times = (self._begin_s, ready_s, time.perf_counter())
        self.spans.append(Span(action.kind, action.chunk, action.microbatch, *times))
        self._next += 1

    def run(self) -> None:
        """Do all actions."""
        while not self.done:
            self.step()

    # ------------------------------------------------------------------------------------------------ actions

    def _forward(self, action: Action) -> float:
        chunk, microbatch, batch = self._chunks[action.chunk], action.microbatch, self._batch
        if chunk.is_first:
            assert batch.inputs is not None
            carry = {"0": batch.inputs(microbatch)}
        else:
            carry = self._receive(Key("F", chunk.position, microbatch))
        ready_s = time.perf_counter()
        if batch.score is not None:
            return self._infer(chunk, microbatch, carry, ready_s)
        followed = self._boundaries[action.chunk][batch.sizes[microbatch], True].followed_in
        run = Run(microbatch, batch.seed, batch.keep[microbatch], followed)
        if chunk.is_last:
            assert batch.targets is not None
            outputs = chunk.forward(run, carry, batch.targets(microbatch), batch.weights[microbatch])
            self.losses[microbatch] = outputs["loss"]
        else:
            outputs = chunk.forward(run, carry)
            self._send("F", chunk.position + 1, microbatch, outputs)
        if chunk.lets_go:
            self._transport.let_go(list(carry.values()))
        return ready_s

    def _infer(self, chunk: Chunk, microbatch: int, carry: Carry, ready_s: float) -> float:
        assert self._batch.score is not None
        outputs = chunk.infer(carry)
        if chunk.is_last:
            self._batch.score(microbatch, main(outputs))
        else:
            self._send("F", chunk.position + 1, microbatch, outputs)
            going = {tensor.data_ptr() for tensor in outputs.values()}
            carry = {name: tensor for name, tensor in carry.items() if tensor.data_ptr() not in going}
        self._transport.give_back(list(carry.values()))
        return ready_s

    def _backward(self, action: Action) -> float:
        chunk, microbatch = self._chunks[action.chunk], action.microbatch
        gradients: Carry = {}
        self._recompute(action)
        ready_s = self._begin_s
        if not chunk.is_last:
            gradients = self._receive(Key("B", chunk.position, microbatch))
            ready_s = time.perf_counter()
        inputs = chunk.inputs(microbatch)
        returned = chunk.backward(microbatch, gradients)
        if not chunk.is_first:
            self._send("B", chunk.position - 1, microbatch, returned)
        going = {tensor.data_ptr() for tensor in returned.values()}
        read = [*inputs.values(), *gradients.values()]
        read = [tensor for tensor in read if tensor.data_ptr() not in going]
        if chunk.splits_backward:
            self._read_by_weights[action.chunk, microbatch] = read
        else:
            self._transport.give_back(read)
        return ready_s

    def _recompute(self, action: Action) -> None:
        if self._chunks[action.chunk].recompute(action.microbatch):
            begin_s, self._begin_s = self._begin_s, time.perf_counter()
            self.spans.append(Span("R", action.chunk, action.microbatch, begin_s, begin_s, self._begin_s))

    def _weigh(self, action: Action) -> float:
        ready_s = time.perf_counter()
        self._chunks[action.chunk].weigh(action.microbatch)
        self._transport.give_back(self._read_by_weights.pop((action.chunk, action.microbatch)))
        return ready_s

    # ------------------------------------------------------------------------------------------------ messages

    def _receives(self, action: Action) -> Iterator[tuple[Key, Sequence[Spec], int]]:
        chunk = self._chunks[action.chunk]
        size, training = self._batch.sizes[action.microbatch], self._batch.score is None
        boundary = self._boundaries[action.chunk][size, training]
        if action.kind == "F" and not chunk.is_first:
            key = Key("F", chunk.position, action.microbatch)
            yield key, boundary.inputs, self._placement.stage(chunk.position - 1)
        if action.kind == "B" and not chunk.is_last:
            key = Key("B", chunk.position, action.microbatch)
            yield key, boundary.gradients_in(), self._placement.stage(chunk.position + 1)

    def _receive(self, key: Key) -> Carry:
        self._received += 1
        return self._transport.receive(key)

    def _send(self, kind: str, position: int, microbatch: int, tensors: Carry) -> None:
        self._transport.send(Key(kind, position, microbatch), tensors, self._placement.stage(position))
