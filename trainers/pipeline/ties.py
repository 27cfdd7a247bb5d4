"""Parameters that several layers share: every layer has a copy, and all copies get the sum of all copies' gradients.

The stage of the first use adds the gradients up, in the order of the layers, whatever stages they are on, and hands the
sum to the others. Copies on one stage send nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainers.optimizers import aligned
from trainers.pipeline.transport import Key, Spec, Transport

Ties = dict[str, Sequence[tuple[int, int]]]
"""For each tied parameter the layers that use it, in order, each with its stage."""


def share_ties(
    ties: Ties, copies: Mapping[str, Mapping[int, nn.Parameter]], stage: int, transport: Transport
) -> Iterator[None]:
    """Give the copies on this stage their gradient; yields while it would wait for a rank of the same process.

    Args:
        copies: of each tied parameter those on this stage, by layer.
    """
    for index, (name, uses) in enumerate(ties.items()):
        home = uses[0][1]
        for layer, place in uses:
            if place == stage != home:
                transport.send(Key("T", index, layer), {"0": _gradient(copies[name][layer])}, home)
    for index, (name, uses) in enumerate(ties.items()):
        if stage == uses[0][1]:
            total = yield from _sum(index, uses, copies[name], stage, transport)
            for place in sorted({place for _, place in uses} - {stage}):
                # A copy, since in one process the receiver would get this very tensor, and both clip theirs.
                transport.send(Key("U", index, place), {"0": total.clone()}, place)
            for parameter in copies[name].values():
                parameter.grad = aligned(total, parameter)
    for index, (name, uses) in enumerate(ties.items()):
        own = copies.get(name, {})
        if own and stage != uses[0][1]:
            total = yield from _get(Key("U", index, stage), own, uses[0][1], transport)
            for parameter in own.values():
                parameter.grad = aligned(total, parameter)


def _sum(
    index: int, uses: Sequence[tuple[int, int]], copies: Mapping[int, nn.Parameter], stage: int, transport: Transport
) -> Iterator[None]:
    total: Tensor | None = None
    for layer, place in uses:
        if place == stage:
            part = _gradient(copies[layer])
        else:
            part = yield from _get(Key("T", index, layer), copies, place, transport)
        total = part.clone() if total is None else total + part
    return total  # type: ignore[return-value]  # the generator's return value


def _get(key: Key, copies: Mapping[int, nn.Parameter], source: int, transport: Transport) -> Iterator[None]:
    like = next(iter(copies.values()))
    transport.expect(key, [Spec("0", tuple(like.shape), like.dtype)], source)
    while not transport.ready(key):
        yield None
    return transport.receive(key)["0"]  # type: ignore[return-value]  # the generator's return value


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
