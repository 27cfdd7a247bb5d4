"""What travels between stages, agreed before training by one dry micro-batch of each size.

The dry micro-batch goes down the pipeline once: each stage receives a header that says names, shapes and types,
then the tensors, runs its layers, and sends on what came out. So a layer that cannot take what it is given fails here,
naming stage, layer and shapes, and afterwards no message needs a header.

Gradients travel back in the same shapes, for the tensors that autograd would bring one in one process. So in training
word of these comes up the pipeline once, too: what autograd's graph reaches from the model's output. A value that is
only detached or measured behind a cut gets no gradient, and not zeros, of which an operation may make something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from strategies.pipeline import Placement
from trainers.pipeline.chunk import Carry, Chunk
from trainers.pipeline.transport import Key, Spec, Transport


class Boundary(NamedTuple):
    """What goes into a chunk and what comes out, for one size of micro-batch.

    Args:
        inputs, outputs: the tensors, in order; of the first chunk's inputs and the last one's outputs none.
        followed_in, followed_out: names of those whose gradients travel back.
    """

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    followed_in: frozenset[str]
    followed_out: frozenset[str]

    def gradients_in(self) -> tuple[Spec, ...]:
        """Return the gradients that arrive from the chunk behind."""
        return tuple(spec for spec in self.outputs if spec.name in self.followed_out)

    def num_bytes(self) -> int:
        """Return the bytes that arrive from before."""
        return sum(torch.Size(spec.shape).numel() * spec.dtype.itemsize for spec in self.inputs)


class Agreement:
    """One rank's side of the agreement on one size.

    Args:
        placement: which rank holds which position.
        number: of the agreement, the same on all ranks; its messages bear it in place of a micro-batch.
    """

    def __init__(self, chunk: Chunk, transport: Transport, placement: Placement, number: int) -> None:
        self._chunk, self._transport, self._placement, self._number = chunk, transport, placement, number
        self._reached: dict[str, frozenset[str]] = {}

    def settle(self, size: int, inputs: Tensor | None, *, training: bool) -> Boundary:
        """Run the dry micro-batch through this chunk.

        Args:
            size: its number of examples. inputs: of the model, for the first chunk.
            training: whether in training mode, with gradients to come back, or in evaluation mode.
        """
        chunk = self._chunk
        if chunk.is_first:
            assert inputs is not None
            carry, followed_in = {"0": inputs}, frozenset[str]()
        else:
            carry, followed_in = self._receive()
        leaves, returned = chunk.probe(carry, training=training, followed=followed_in)
        self._reached = {name: reached(tensor, leaves) for name, tensor in returned.items()} if training else {}
        followed_out = frozenset(name for name, tensor in returned.items() if tensor.requires_grad)
        for name, tensor in returned.items():
            if tensor.dim() == 0 or len(tensor) != size:
                shape = tuple(tensor.shape)
                raise ValueError(f"{chunk.layers[-1]} returned {name} of shape {shape} for {size} examples")
        if not chunk.is_last:
            self._send(returned, followed_out)
        came = () if chunk.is_first else _specs(carry)
        goes = () if chunk.is_last else _specs(returned)
        return Boundary(came, goes, followed_in, followed_out)

    def back(self, boundary: Boundary) -> Boundary:
        """Hear which of the outputs get gradients in training, and tell the chunk before which of the inputs do.

        Args:
            boundary: that this side's `settle` returned.
        """
        chunk, asked = self._chunk, frozenset(self._reached)
        if not chunk.is_last:
            names = [spec.name for spec in boundary.outputs]
            key, source = self.word_from_behind, self._placement.stage(chunk.position + 1)
            self._transport.expect(key, [Spec("asked", (len(names),), torch.uint8)], source)
            asked = frozenset(
                name for name, yes in zip(names, self._transport.receive(key)["asked"], strict=True) if yes
            )
        found = frozenset[str]().union(*(self._reached[name] for name in asked))
        if not chunk.is_first:
            word = torch.tensor([spec.name in found for spec in boundary.inputs], dtype=torch.uint8)
            target = self._placement.stage(chunk.position - 1)
            self._transport.send(Key("B", chunk.position - 1, self._number), {"asked": word}, target)
        return boundary._replace(followed_in=found, followed_out=asked & boundary.followed_out)

    @property
    def word_from_behind(self) -> Key:
        """The message that `back` waits for, of all but the last chunk."""
        return Key("B", self._chunk.position, self._number)

    def _receive(self) -> tuple[Carry, frozenset[str]]:
        source = self._placement.stage(self._chunk.position - 1)
        length = self._one("L", [Spec("length", (1,), torch.int64)], source)["length"]
        text = self._one("H", [Spec("text", (int(length),), torch.uint8)], source)["text"]
        entries = json.loads(bytes(text.tolist()))
        specs = [Spec(name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype, _ in entries]
        return self._one("D", specs, source), frozenset(name for name, _, _, followed in entries if followed)

    def _one(self, kind: str, specs: Sequence[Spec], source: int) -> Carry:
        key = Key(kind, self._chunk.position, self._number)
        self._transport.expect(key, specs, source)
        return self._transport.receive(key)

    def _send(self, carry: Mapping[str, Tensor], followed: frozenset[str]) -> None:
        position = self._chunk.position + 1
        target = self._placement.stage(position)
        entries = [[spec.name, spec.shape, str(spec.dtype)[6:], spec.name in followed] for spec in _specs(carry)]
        text = torch.tensor(list(json.dumps(entries).encode()), dtype=torch.uint8)
        self._transport.send(Key("L", position, self._number), {"length": torch.tensor([len(text)])}, target)
        self._transport.send(Key("H", position, self._number), {"text": text}, target)
        detached = {name: tensor.detach() for name, tensor in carry.items()}
        self._transport.send(Key("D", position, self._number), detached, target)


def reached(output: Tensor, leaves: Mapping[str, Tensor]) -> frozenset[str]:
    """Return which of the leaves that are followed autograd would bring a gradient from an output."""
    names = {id(leaf): name for name, leaf in leaves.items() if leaf.requires_grad}
    if id(output) in names:
        return frozenset({names[id(output)]})
    found, seen, waiting = set[str](), set[object](), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = names.get(id(getattr(node, "variable", None)))
        if name is not None:
            found.add(name)
        waiting += [before for before, _ in node.next_functions]
    return frozenset(found)


def _specs(carry: Mapping[str, Tensor]) -> tuple[Spec, ...]:
    return tuple(Spec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in carry.items())
