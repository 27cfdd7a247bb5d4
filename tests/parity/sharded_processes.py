"""Sharded runs in processes of their own, joined by gloo, without Ray: what each process does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from strategies.sharded import parse
from trainers import models, optimizers
from trainers.data.base import Dataset
from trainers.pipeline.state import merge
from trainers.sharded import program
from trainers.sharded.layout import resolve, to_torch
from trainers.sharded.settings import Settings

STEPS, HALF = 20, 3
HEADS = [("*.project.*", ["S(0/3)"]), ("*.attention.out.weight", ["S(1)"]), ("*.expand.*", ["S(0)"]),
         ("*.contract.weight", ["S(1)"])]  # fmt: skip
LAMB = {"name": "lamb", "lr": 0.01, "kwargs": {}}
TWO = {
    "data parallel": ((2,), [], (0,), {}),
    "tensor parallel": ((2,), HEADS, (), {"clip_value": 0.05, "gradient_noise": {"eta": 0.01, "gamma": 0.55}}),
    "one by two": (
        (1, 2),
        [(name, ["B", *entry]) for name, entry in HEADS],
        (0,),
        {"clip_norm": None, "accumulate": 2},
    ),
    "two by one": ((2, 1), [(name, ["B", *entry]) for name, entry in HEADS], (0,), {}),
    "uneven": ((2,), [("*.expand.*", ["S(0)"]), ("tokens.weight", ["S(0)"]), ("head.weight", ["S(0)"])], (), {}),
    "lamb": ((2,), HEADS, (), {"optimizer": LAMB}),
    "gathered": ((2,), [("*.weight", ["S(0)"])], (0,), {}),
}
"""Runs on two ranks: mesh, patterns, axes of the batch, and other settings."""
FOUR = {"two by two": ((2, 2), [(name, ["B", *entry]) for name, entry in HEADS], (0,), {})}
CHANGES = [("S(0)", "S(1)"), ("S(0)", "B"), ("B", "S(1)"), ("P", "B"), ("P", "S(0)"), ("S(0)", "S(0)")]


class Context(NamedTuple):
    rank: int
    world_size: int
    device: str = "cpu"

    def report(self, payload: Any) -> str:
        return ""


def dataset() -> Dataset:
    rng = np.random.default_rng(3)
    x = rng.integers(13, size=(40, 6))
    y = rng.integers(13, size=(40, 6))
    return Dataset("toy", "language-model", x, y, x[:7], y[:7], 13, (6,))


def settings(mesh: tuple[int, ...], patterns: Any, batch_axes: tuple[int, ...], changes: dict[str, Any]) -> Settings:
    model = {"name": "transformer", "layers": 1, "heads": 2, "width": 8, "dropout": 0.1, "dtype": "float64"}
    names = [name for name, _ in built(model).named_parameters()]
    plain = {
        "model": model, "seed": 5, "model_seed": 7, "mesh": mesh, "placements": resolve(patterns, names),
        "batch_axes": batch_axes, "batch_size": 6, "accumulate": 1, "clip_norm": 0.5, "precision": None,
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "kwargs": {}},
        "learning_rate": {"name": "cosine", "warmup_steps": 3, "final": 0.1},
        "loss": {"target": None, "reduction": "mean"}, "evaluate_batch": 3, "steps": STEPS,
    }  # fmt: skip
    return Settings(**{**plain, **changes})


def built(model: dict[str, Any]) -> torch.nn.Module:
    return models.build(model, input_shape=(6,), num_classes=13, seed=7)


class Found(NamedTuple):
    """What a process found.

    Args:
        parts: its share of each run's state. values: of each run's last step. evaluated: after it.
        counts: of each change of a layout, collectives by `Boxing` with their bytes, and by torch's CommDebugMode.
        resumed: its share of a run that began on one mesh and ended on another.
    """

    parts: dict[str, dict[str, dict[str, torch.Tensor]]]
    values: dict[str, dict[str, float]]
    evaluated: dict[str, dict[str, float]]
    counts: dict[str, tuple[dict[str, int], dict[str, int], dict[str, int]]]
    resumed: dict[str, dict[str, torch.Tensor]]


def run(folder: Path, size: int, names: Sequence[str]) -> list[Found]:
    """Start the processes, let them train some of the runs, and return what they found, by rank."""
    return [Found(*found) for found in each(folder, size, _train, tuple(names))]


def each(folder: Path, size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `work(context, folder, *args)` in processes that gloo joins; return what it returned, by rank."""
    mp.spawn(_launch, (folder, size, work, args), nprocs=1)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _launch(_: int, folder: Path, size: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Fork the processes off one that has imported all they need, and has no threads."""
    optimizers.build({"name": "adamw", "lr": 0.1, "kwargs": {}}, [torch.nn.Parameter(torch.zeros(1))])
    mp.start_processes(_process, (folder, size, work, args), nprocs=size, start_method="fork")


def _process(rank: int, folder: Path, size: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{folder}/join", rank=rank, world_size=size, timeout=timedelta(seconds=120))
    torch.save(work(Context(rank, size), folder, *args), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _train(context: Context, folder: Path, names: tuple[str, ...]) -> tuple[Any, ...]:
    parts, values, evaluated = {}, {}, {}
    size, data = context.world_size, dataset()
    for name in names:
        one = program.build(context, settings(*{**TWO, **FOUR}[name]), data)
        for number in range(1, STEPS + 1):
            values[name] = dict(one.step(number).values)
        parts[name], evaluated[name] = one.export(), dict(one.evaluate(STEPS))
    return tuple(Found(parts, values, evaluated, _changes(size), _resume(context, data, folder) if size == 2 else {}))


def _changes(size: int) -> dict[str, tuple[dict[str, int], dict[str, int], dict[str, int]]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.debug import CommDebugMode

    from trainers.sharded.boxing import Boxing, Layers

    mesh, found = init_device_mesh("cpu", (size,)), {}
    for source, target in CHANGES:
        tensor = DTensor.from_local(torch.ones(4, 6), mesh, [to_torch(parse(source))], run_check=False)
        with CommDebugMode() as oracle, Boxing(Layers(torch.nn.Linear(1, 1)), size) as boxing:
            tensor.redistribute(mesh, [to_torch(parse(target))]).to_local().sum()
        told = {str(op).rsplit(".", 1)[1]: number for op, number in oracle.get_comm_counts().items()}
        found[f"{source} {target}"] = (dict(boxing.counts), dict(boxing.num_bytes), told)
    return found


def _resume(context: Context, data: Dataset, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Train some steps by tensors, and as many more by examples, from what the ranks saved."""
    first = program.build(context, settings(*TWO["tensor parallel"][:3], {}), data)
    for number in range(1, HALF + 1):
        first.step(number)
    torch.save(first.export(), folder / f"half-{context.rank}.pt")
    dist.barrier()
    trees = merge([torch.load(folder / f"half-{rank}.pt", weights_only=True) for rank in range(context.world_size)], [])
    second = program.build(context, settings(*TWO["data parallel"][:3], {}), data)
    second.restore(trees)
    for number in range(HALF + 1, 2 * HALF + 1):
        second.step(number)
    return second.export()
