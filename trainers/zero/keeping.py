"""Activations in 8 bits on ranks of ZeRO: each rounds what its share keeps, in ranges that are the same on all ranks.

Rounding is drawn by seed, step, batch, rank and place, so that one process that goes through all shares rounds alike.
Ranges move once a step by their mean over all shares of it: what each rank has seen is part of the one vector that
ranks add up. Its layout is what is remembered, which all ranks know; at the first step, and where a model takes another
path later, ranks first tell each other the names of their places.

Left out: shares that only fill up a batch too small for all ranks. They keep their activations as they are, and move
no range.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from strategies.seeds import integer
from trainers.activations import ALPHA, BETA, Saver, Trees, export_running, restore_running
from trainers.zero.settings import Settings, Share


class Keeping:
    """What one process keeps of the shares that it goes through; without a `memory` section, nothing is done.

    Args:
        model: whole, or with parameters that DeepSpeed gathers.
    """

    def __init__(self, settings: Settings, model: nn.Module) -> None:
        self._seed = settings.seed
        self._saver = None if settings.memory is None else Saver(settings.memory, {0: ("", model)}, parts=True)

    @contextmanager
    def share(self, step: int, batch: int, rank: int, share: Share, inputs: Tensor) -> Iterator[None]:
        """Keep what is saved within: the forward pass of a rank's share of one batch of a step."""
        if self._saver is None or not share.weight:
            yield
            return
        seed = integer(self._seed, "activations", step, batch, rank)
        with self._saver.microbatch(0, seed), self._saver.layer(0, (inputs,)):
            yield

    def sums(self) -> Tensor:
        """Return what is added up over ranks at the end of a step: how many of them lack a layout, and ranges."""
        if self._saver is None:
            return torch.zeros(0, dtype=torch.float64)
        running = self._saver.running
        known, seen = running.widths(), running.seen_widths()
        lacks = self._saver.policy.running and any(known.get(name) != width for name, width in seen.items())
        return torch.cat([torch.tensor([float(lacks)], dtype=torch.float64), running.sums(known)])

    def commit(self, sums: Tensor, device: torch.device) -> None:
        """End a step by what `sums` are together on all ranks; all call it."""
        if self._saver is None:
            return
        running = self._saver.running
        widths, sums, lacking = running.widths(), sums[1:], bool(sums[0])
        if lacking:
            for seen in _exchanged(running.seen_widths(), device):
                widths |= seen
            total = running.sums(widths).to(device)
            dist.all_reduce(total)
            sums = total.cpu()
        running.commit_sums(widths, sums, self._saver.device)
        self._saver.commit()

    def commit_alone(self) -> None:
        """End a step in a process that has gone through all shares."""
        if self._saver is None:
            return
        running = self._saver.running
        widths = running.widths() | running.seen_widths()
        running.commit_sums(widths, running.sums(widths), self._saver.device)
        self._saver.commit()

    def trees(self) -> Trees:
        """Return the ranges as trees of a state; the same on every rank."""
        return {} if self._saver is None else export_running(self._saver)

    def restore(self, trees: Trees) -> None:
        """Take the ranges of a state, where it has any."""
        if self._saver is not None:
            restore_running(self._saver, {tree: trees.get(tree, {}) for tree in (ALPHA, BETA)})


def _exchanged(own: Mapping[str, int], device: torch.device) -> Iterator[dict[str, int]]:
    """Yield what every rank tells, in their order."""
    told = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
    longest = torch.tensor([len(told)], device=device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    sent = torch.full((int(longest),), ord(" "), dtype=torch.uint8, device=device)
    sent[: len(told)] = told.to(device)
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
    dist.all_gather(received, sent)
    for one in received:
        found: Any = json.loads(bytes(one.tolist()))
        yield found
