"""What each layer of a chain costs: forward and backward time, bytes kept for backward, bytes handed on; measured.

One micro-batch goes through the layers one at a time, forward and backward, as a stage would run it. The smallest of
some repetitions counts, since whatever else runs on the machine only adds. A micro-batch of another size is taken to
cost in proportion.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainers.activations import Packed, Saver, heads_of
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.pipeline import deferred, losses
from trainers.pipeline.chunk import Carry, Chunk, Run
from trainers.pipeline.keeping import make_saver
from trainers.pipeline.layers import Chain, chain
from trainers.threads import intra_op_threads


class LayerCost(NamedTuple):
    """One layer, for one micro-batch.

    Args:
        name: as the model calls it, with its class.
        forward_s, backward_s: seconds.
        activation_bytes: kept by autograd for backward, what layers before keep already left out.
        plain_activation_bytes: the same, were they not kept in 8 bits.
        own_input_bytes: how many of those are of the layer's own input.
        input_bytes: of what comes from the layer before, skips that pass by included.
        held_input_bytes: of those, what a stage that begins here holds until backward: all, or with `memory` what the
            layer saves. boundary_bytes: what it holds where it computes again.
        gradient_bytes: put aside by a backward that is split, until the weight gradients: gradients of the outputs of
            the layer's parts with weights, where each has memory of its own.
        parameter_bytes, num_parameters: of its trained numbers; of tied ones, each use counts.
    """

    name: str
    forward_s: float
    backward_s: float
    activation_bytes: int
    plain_activation_bytes: int
    own_input_bytes: int
    input_bytes: int
    held_input_bytes: int
    boundary_bytes: int
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
    memory: Mapping[str, Any] | None = None,
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
    chunks = _alone(layers, loss, precision, memory)
    x = to_tensor(dataset.train_x[:size], dataset, dtype)
    y = to_labels(dataset.train_y[:size])
    best = [[float("inf"), float("inf")] for _ in chunks]
    counting = _Counting((*(p for layer in layers.layers for p in layer.module.parameters()), x), precision is None)
    with intra_op_threads(threads), torch.random.fork_rng(devices=[]):
        for repeat in range(repeats):
            carry: Carry = {"0": x}
            for times, chunk in zip(best, chunks, strict=True):
                work = partial(chunk.forward, Run(0, 0, True), carry, y if chunk.is_last else None)
                carry, seconds = counting.forward(chunk, carry, work) if repeat == 0 else timed(work)
                times[0] = min(times[0], seconds)
            gradients: Carry = {}
            for times, chunk in zip(reversed(best), reversed(chunks), strict=True):
                gradients, seconds = timed(partial(chunk.backward, 0, gradients))
                times[1] = min(times[1], seconds)
    return [
        LayerCost(
            f"{layer.name} ({type(layer.module).__name__})",
            forward,
            backward,
            *counted,
            sum(_bytes(p) for p in layer.module.parameters() if p.requires_grad),
            sum(p.numel() for p in layer.module.parameters() if p.requires_grad),
        )
        for layer, (forward, backward), counted in zip(layers.layers, best, counting.counted, strict=True)
    ]


def _alone(
    layers: Chain, loss: Mapping[str, Any], precision: str | None, memory: Mapping[str, Any] | None
) -> list[Chunk]:
    """Return each layer as a chunk of its own."""
    heads = heads_of({layer.index: layer.module for layer in layers.layers})
    return [
        Chunk(
            [layer],
            layer.index,
            len(layers.layers),
            loss=losses.build(loss) if layer.index == len(layers.layers) - 1 else None,
            precision=precision,
            saver=make_saver(memory, [layer], heads),
        )
        for layer in layers.layers
    ]


class _Counting:
    """Counts bytes while each layer goes forward for the first time.

    Args:
        known: tensors that no layer is to be charged with. splits: whether backward could be split.

    Attributes:
        counted: of each layer so far, from `activation_bytes` of its cost to `gradient_bytes`.
    """

    def __init__(self, known: Iterable[Tensor], splits: bool) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._splits = splits
        self._alive: list[Tensor] = []  # all that was carried, so that no address is used again while it is counted
        self.counted: list[tuple[int, ...]] = []

    def forward(self, chunk: Chunk, carry: Carry, work: Callable[[], Carry]) -> tuple[Carry, float]:
        """Return what a layer's forward returns for what it is given, and the seconds it took."""
        kept = Kept(self._known, carry)
        self._alive += carry.values()
        with _outputs_of_weights(chunk.modules) if self._splits else nullcontext([]) as aside:
            returned, seconds = timed(work, kept, chunk.saver)
        given = held = boundary = sum(map(_bytes, carry.values()))
        if chunk.saver is not None:
            held, boundary = kept.held_input_bytes, _boundary(chunk.saver, carry, len(self.counted))
        sizes = kept.num_bytes, kept.num_plain_bytes, kept.num_input_bytes
        self.counted.append((*sizes, given, held, boundary, sum(aside)))
        self._alive += kept.tensors
        return returned, seconds


def _boundary(saver: Saver, carry: Carry, index: int) -> int:
    with saver.microbatch(0, 0):
        kept = [saver.keep(tensor, "in0", index) for tensor in carry.values()]
    return sum(_bytes(one) if isinstance(one, Tensor) else one.num_bytes for one in kept)


class Kept:
    """Counts the storages that autograd keeps, each once over the whole chain.

    Args:
        known: addresses of parameters, the model's input and what was counted before; added to.
        carry: the layer's input.
    """

    def __init__(self, known: set[int], carry: Carry) -> None:
        self._known = known
        self._own: set[int] = set()
        self._inputs = {tensor.untyped_storage().data_ptr() for tensor in carry.values()}
        self.num_bytes = self.num_plain_bytes = self.num_input_bytes = self.held_input_bytes = 0
        self.tensors: list[Tensor] = []
        self._blocks: list[object] = []
        self._held: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        self.watch(tensor, tensor)
        return tensor

    def watch(self, tensor: Tensor, packed: Packed) -> None:
        """Count a tensor that is saved, and what is kept of it."""
        storage = tensor.untyped_storage()
        where = storage.data_ptr()
        self.num_plain_bytes += storage.nbytes() if where not in self._known else 0
        if isinstance(packed, Tensor):
            num_bytes, new = storage.nbytes(), where not in self._known
        else:
            num_bytes, new = packed.num_bytes, not any(block is packed.block for block in self._blocks)
            new = new and not (where in self._known and where not in self._own)
            self._blocks.append(packed.block)
        if where in self._inputs and where not in self._held:
            self._held.add(where)
            self.held_input_bytes += num_bytes
        self.tensors.append(tensor.detach())
        if new:
            self._known.add(where)
            self._own.add(where)
            self.num_bytes += num_bytes
            self.num_input_bytes += num_bytes if where in self._inputs else 0

    @contextmanager
    def counting(self, saver: Saver | None = None) -> Iterator[None]:
        """Count what is kept within, by a saver or as it is."""
        if saver is not None:
            saver.watch = self.watch
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
                yield
        finally:
            if saver is not None:
                saver.watch = None


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


def timed(work: Callable[[], Carry], kept: Kept | None = None, saver: Saver | None = None) -> tuple[Carry, float]:
    """Return what comes of some work, and the seconds it took; `kept` counts what autograd keeps of it."""
    began = time.perf_counter()
    with nullcontext() if kept is None else kept.counting(saver):
        result = work()
    return result, time.perf_counter() - began


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
