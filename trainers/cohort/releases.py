"""The models that the server released, as a worker holds them: decoded once a version, the latest few kept."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import torch

from strategies.base import ServerRule, Tree
from strategies.compression import Codec, build
from trainers import wire

SENT = "sent/"
"""Before the names of what a rule sends beside the model."""

NUM_KEPT = 4
"""Versions kept beyond those of the call at hand: a synchronous run evaluates what it will train from next."""


class Release(NamedTuple):
    """One version: the aggregated tensors of the model, and what the rule sent beside them."""

    model: Tree
    sent: Tree


def release(model: Tree, sent: Tree) -> Tree:
    """Return one version as a single tree, as it travels."""
    return {**model, **{f"{SENT}{name}": tensor for name, tensor in sent.items()}}


def downlink_codec(sections: Sequence[Mapping[str, Any]], rule: ServerRule, model: Tree) -> Codec | None:
    """Return the codec of a rule's releases, bound to their names and shapes; None for the plain wire."""
    if not sections:
        return None
    return build(sections).bind(release(model, rule.send(rule.init(model))))


class Releases:
    """Decoded versions by number.

    Args:
        codec: what broadcasts are encoded with; None for the plain wire. device: where tensors are put.
    """

    def __init__(self, codec: Codec | None, device: torch.device) -> None:
        self._codec = codec
        self._device = device
        self._kept: OrderedDict[int, Release] = OrderedDict()

    def receive(self, versions: Sequence[int], broadcasts: Sequence[pa.Buffer]) -> tuple[dict[int, Release], float]:
        """Return the versions of a call, and the seconds that decoding the new ones took."""
        began = time.perf_counter()
        for version, broadcast in zip(versions, broadcasts, strict=True):
            if version in self._kept:
                self._kept.move_to_end(version)
                continue
            flat = wire.decode(broadcast) if self._codec is None else self._codec.decode(broadcast)
            on_device = {name: tensor.to(self._device) for name, tensor in flat.items()}
            model = {name: tensor for name, tensor in on_device.items() if not name.startswith(SENT)}
            sent = {name.removeprefix(SENT): t for name, t in on_device.items() if name.startswith(SENT)}
            self._kept[version] = Release(model, sent)
        found = {version: self._kept[version] for version in versions}
        while len(self._kept) > max(NUM_KEPT, len(versions)):
            self._kept.popitem(last=False)
        return found, time.perf_counter() - began
