"""Workers of local learning in processes of their own, joined by gloo, without Ray: what each process does."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.contract.local_runs import STEPS, dataset, settings
from trainers import optimizers
from trainers.decoupled import program
from trainers.decoupled.settings import Settings
from trainers.decoupled.worker import Worker
from trainers.pipeline import transport

RULE = {"name": "auglocal", "depth": 1, "modules": 3}
SHARES = (1, 1, 1)
OTHERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "counter-current": ((2, 2, 2), {"name": "counter-current"}),
    "noprop": ((1, 1, 2), {"name": "noprop", "blocks": 4, "hidden": 8}),
    "forward-forward": ((1, 1, 3), {"name": "forward-forward"}),
}
"""Rules whose workers hear from behind, from nobody, and of several tensors; with the modules of each worker."""
REPLICATED = {"behind": (1, 2), "before": (2, 1)}
"""Replicas of two workers, on three processes."""
WAYS = ("as it is", "after learning", "in half precision")
"""How what is sent came about: as the workers do it, and the two negative controls."""


class Context(NamedTuple):
    rank: int
    world_size: int
    device: str = "cpu"

    def report(self, payload: Any) -> str:
        return ""


class Found(NamedTuple):
    """What a process found.

    Args:
        states: trees of each way. values: of the steps, of each way. sent: target and bytes of each tensor, first way.
        ahead: how many batches the first worker had begun beyond the second one, when that had done each.
        others: trees of each other rule. replicated: what was told and trees, of each of `REPLICATED`.
    """

    states: dict[str, dict[str, dict[str, torch.Tensor]]]
    values: dict[str, list[dict[str, float]]]
    sent: list[tuple[int, int]]
    ahead: list[int]
    others: dict[str, dict[str, dict[str, torch.Tensor]]]
    replicated: dict[str, tuple[list[dict[str, float]], dict[str, dict[str, torch.Tensor]]]]


def run(folder: Path) -> list[Found]:
    """Start the processes and return what they found, by rank."""
    mp.spawn(_launch, (folder,), nprocs=1)
    return [Found(*torch.load(folder / f"{rank}.pt", weights_only=True)) for rank in range(len(SHARES))]


def replicas(name: str) -> Settings:
    """Return the training of a case of `REPLICATED`."""
    return settings((1, 1), {**RULE, "modules": 2}, replicas=REPLICATED[name])


def _launch(_: int, folder: Path) -> None:
    """Fork the processes off one that has imported all they need, and has no threads."""
    settings_ = settings(SHARES, RULE)
    optimizers.build(settings_.optimizer, [torch.nn.Parameter(torch.zeros(1))])  # imports what a step takes
    begun = mp.get_context("fork").Array("i", len(SHARES))
    mp.start_processes(_process, (folder, begun), nprocs=len(SHARES), start_method="fork")


def _process(rank: int, folder: Path, begun: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", f"file://{folder}/join", rank=rank, world_size=len(SHARES), timeout=timedelta(seconds=60)
    )
    sent: list[tuple[int, int]] = []
    isend = dist.isend

    def noted(tensor: torch.Tensor, target: int, *more: Any, **rest: Any) -> Any:
        sent.append((target, tensor.numel() * tensor.element_size()))
        return isend(tensor, target, *more, **rest)

    transport.dist.isend = noted
    states, values, first = {}, {}, []
    for way in WAYS:
        worker = _worker(rank, settings(SHARES, RULE), way)
        values[way], states[way] = _trained(worker)
        first = first or list(sent)
    others = {
        name: _trained(program.make(Context(rank, len(SHARES)), settings(*of), dataset(), time.time()))[1]
        for name, of in OTHERS.items()
    }
    replicated = {
        name: _trained(program.make(Context(rank, len(SHARES)), replicas(name), dataset(), time.time()))
        for name in REPLICATED
    }
    ahead = _queued(rank, begun)
    torch.save((states, values, first, ahead, others, replicated), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _trained(worker: Worker) -> tuple[list[dict[str, float]], dict[str, dict[str, torch.Tensor]]]:
    """Train a worker and return what it told, the evaluation last, and its state."""
    values = [dict(worker.step(number).values) for number in range(1, STEPS + 1)]
    values.append(dict(worker.evaluate(STEPS)))
    worker.link.flush()
    return values, {tree: {n: t.clone() for n, t in tensors.items()} for tree, tensors in worker.export().items()}


def _worker(rank: int, given: Settings, way: str) -> Worker:
    worker = program.make(Context(rank, len(SHARES)), given, dataset(), time.time())
    if way == WAYS[1]:
        _send_late(worker)
    elif way == WAYS[2]:
        send = worker.link.send
        worker.link.send = lambda number, carry, mark: send(  # type: ignore[method-assign]
            number, {name: tensor.half().float() for name, tensor in carry.items()}, mark
        )
    return worker


def _send_late(worker: Worker) -> None:
    """Send what the units make of a batch after they have learned from it; BatchNorm's statistics move once."""
    (module,), send, step = worker._modules, worker.link.send, worker.step
    forward, kept = module.forward, {}

    def keep(carry: Any, targets: Any, seed: int) -> Any:
        kept["given"] = {name: tensor.clone() for name, tensor in carry.items()}
        return forward(carry, targets, seed)

    def late(number: int, stop: bool = False) -> Any:
        outcome = step(number, stop)
        if "message" in kept:
            buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
            with torch.no_grad():
                carry = {"h": module.units(kept["given"]["h"])}
            for name, tensor in module.named_buffers():
                tensor.copy_(buffers[name])
            _, _, mark = kept.pop("message")
            send(number, carry, mark)
        return outcome

    module.forward = keep
    worker.link.send = lambda *message: kept.update(message=message)  # type: ignore[method-assign]
    worker.step = late  # type: ignore[method-assign]


def _queued(rank: int, begun: Any) -> list[int]:
    """Train with a queue of two, the second worker slow, and see how far the first gets ahead."""
    worker = program.make(Context(rank, len(SHARES)), settings(SHARES, RULE, queue=2, steps=8), dataset(), time.time())
    ahead = []
    for number in range(1, 9):
        begun[rank] = number
        if rank == 1:
            time.sleep(0.05)
        worker.step(number)
        if rank == 1:
            time.sleep(0.05)
            ahead.append(begun[0] - number)
    worker.link.flush()
    return ahead
