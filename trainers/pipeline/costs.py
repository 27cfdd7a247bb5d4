"""What each layer of a chain costs: forward and backward time, bytes kept for backward, bytes handed on; measured.

One micro-batch goes through the layers one at a time, forward and backward, as a stage would run it. The smallest of
some repetitions counts, since whatever else runs on the machine only adds. A micro-batch of another size is taken to
cost in proportion.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.pipeline import deferred, losses
from trainers.pipeline.chunk import Carry, Chunk, Run
from trainers.pipeline.layers import chain
from trainers.threads import intra_op_threads


class LayerCost(NamedTuple):
    """One layer, for one micro-batch.

    Args:
        name: as the model calls it, with its class.
        forward_s, backward_s: seconds.
        activation_bytes: kept by autograd for backward, what layers before keep already left out.
        own_input_bytes: how many of those are of the layer's own input.
        input_bytes: of what comes from the layer before, skips that pass by included.
        gradient_bytes: put aside by a backward that is split, until the weight gradients: gradients of the outputs of
            the layer's parts with weights, where each has memory of its own.
        parameter_bytes, num_parameters: of its trained numbers; of tied ones, each use counts.
    """

    name: str
    forward_s: float
    backward_s: float
    activation_bytes: int
    own_input_bytes: int
    input_bytes: int
    gradient_bytes: int
    parameter_bytes: int
    num_parameters: int


def measure(
    model: nn.Module,
    dataset: Dataset,
    *,
    size: int,
    dtype: torch.dtype,
    loss: Mapping[str, Any],
    precision: str | None = None,
    threads: int = 1,
    repeats: int = 3,
) -> list[LayerCost]:
    """Measure every layer of a model on this process's CPU.

    Args:
        size: examples of the micro-batch. loss: see `losses.build`. threads: intra-op threads of a stage.

    Raises:
        ModelError: when the model is no chain. LayerFailed: when a layer cannot take what the one before returns.
    """
    layers = chain(copy.deepcopy(model))
    chunks = [
        Chunk(
            [layer],
            layer.index,
            len(layers.layers),
            loss=losses.build(loss) if layer.index == len(layers.layers) - 1 else None,
            precision=precision,
        )
        for layer in layers.layers
    ]
    x = to_tensor(dataset.train_x[:size], dataset, dtype)
    y = to_labels(dataset.train_y[:size])
    best = [[float("inf"), float("inf")] for _ in chunks]
    carried: list[tuple[int, int, int, int]] = []
    known = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*(p for layer in layers.layers for p in layer.module.parameters()), x)
    }
    alive: list[Carry] = []  # all that was carried, so that no address is used again while it is counted
    with intra_op_threads(threads), torch.random.fork_rng(devices=[]):
        for repeat in range(repeats):
            carry: Carry = {"0": x}
            outputs: list[Carry] = []
            for index, chunk in enumerate(chunks):
                kept = Kept(known, carry) if repeat == 0 else None
                given = sum(_bytes(tensor) for tensor in carry.values())
                alive.append(carry)
                targets = y if chunk.is_last else None
                with _outputs_of_weights(chunk.modules) if kept and precision is None else nullcontext([]) as aside:
                    carry, seconds = _timed(lambda c=chunk, given=carry, t=targets: _forward(c, given, t), kept)
                best[index][0] = min(best[index][0], seconds)
                outputs.append(carry)
                if kept is not None:
                    carried.append((kept.num_bytes, kept.num_input_bytes, given, sum(aside)))
                    alive += [{"loss": tensor} for tensor in kept.tensors]
            gradients: Carry = {}
            for index, chunk in reversed(list(enumerate(chunks))):
                gradients, seconds = _timed(lambda c=chunk, g=gradients: c.backward(0, g))
                best[index][1] = min(best[index][1], seconds)
    return [
        LayerCost(
            f"{layer.name} ({type(layer.module).__name__})",
            forward,
            backward,
            kept_bytes,
            own_bytes,
            given,
            aside,
            sum(_bytes(p) for p in layer.module.parameters() if p.requires_grad),
            sum(p.numel() for p in layer.module.parameters() if p.requires_grad),
        )
        for layer, (forward, backward), (kept_bytes, own_bytes, given, aside) in zip(
            layers.layers, best, carried, strict=True
        )
    ]


def _forward(chunk: Chunk, carry: Carry, targets: Tensor | None) -> Carry:
    return chunk.forward(Run(0, 0, True), carry, targets)


class Kept:
    """Counts the storages that autograd keeps, each once over the whole chain.

    Args:
        known: addresses of parameters, the model's input and what was counted before; added to.
        carry: the layer's input.
    """

    def __init__(self, known: set[int], carry: Carry) -> None:
        self._known = known
        self._inputs = {tensor.untyped_storage().data_ptr() for tensor in carry.values()}
        self.num_bytes = self.num_input_bytes = 0
        self.tensors: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.tensors.append(tensor.detach())
            self.num_bytes += storage.nbytes()
            self.num_input_bytes += storage.nbytes() if storage.data_ptr() in self._inputs else 0
        return tensor

    def counting(self) -> AbstractContextManager[Any]:
        """Count what is kept within."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)


@contextmanager
def _outputs_of_weights(module: nn.Module) -> Iterator[list[int]]:
    """Collect the bytes that those parts return whose weight gradients can wait."""
    found: list[int] = []
    hooks = [
        part.register_forward_hook(lambda part, given, returned: found.append(_bytes(returned)))
        for part in module.modules()
        if deferred.waits(part)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _timed(work: Callable[[], Carry], kept: Kept | None = None) -> tuple[Carry, float]:
    began = time.perf_counter()
    if kept is None:
        return work(), time.perf_counter() - began
    with kept.counting():
        result = work()
    return result, time.perf_counter() - began


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
