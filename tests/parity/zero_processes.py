"""ZeRO ranks in processes of their own, joined by gloo, without Ray: what each process does, and what it was told."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trainers import optimizers
from trainers.data.base import Dataset
from trainers.zero.settings import Settings

TEXT, IMAGES = "text", "images"


def dataset(kind: str = TEXT) -> Dataset:
    """Return a little text, or little images; nothing to be learnt, but something to be fitted."""
    draw = np.random.default_rng(5)
    if kind == TEXT:
        tokens = draw.integers(0, 13, (48, 9)).astype(np.uint8)
        x, y = tokens[:, :-1], tokens[:, 1:]
        return Dataset("text", "language-model", x[:37], y[:37], x[37:], y[37:], 13, (8,))
    x, y = draw.normal(size=(48, 1, 12, 12)).astype(np.float32), draw.integers(0, 4, 48)
    return Dataset("images", "classification", x[:37], y[:37], x[37:], y[37:], 4, (1, 12, 12))


def settings(**changes: Any) -> Settings:
    """Return settings of a small transformer on two ranks, whose shares are uneven."""
    plain: dict[str, Any] = {
        "model": {"name": "transformer", "layers": 2, "heads": 2, "width": 16, "dropout": 0.1, "dtype": "float32"},
        "seed": 3,
        "model_seed": 4,
        "ranks": 2,
        "stage": 2,
        "offload": "none",
        "nvme_folder": None,
        "batch_size": 7,
        "accumulate": 1,
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        "learning_rate": {"name": "cosine", "warmup_steps": 3, "final": 0.1},
        "clip_norm": 0.5,
        "loss": {"reduction": "mean", "target": None},
        "precision": None,
        "steps": 20,
        "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 50}},
        "memory": None,
    }
    return Settings(**{**plain, **changes})


class Context:
    """A rank's view of its gang, which keeps what it is told."""

    device = "cpu"

    def __init__(self, rank: int, world_size: int, stop_at: int | None = None) -> None:
        self.rank, self.world_size, self.told = rank, world_size, list[dict[str, Any]]()
        self._stop_at = stop_at

    def report(self, payload: Any) -> str:
        """Keep a report; say `stop` from a step on."""
        self.told.append(payload)
        return "stop" if self._stop_at is not None and payload["step"] >= self._stop_at else ""


class Case(NamedTuple):
    """One run of the program: its settings, what it starts from, and when it is told to stop."""

    settings: Settings
    kind: str = TEXT
    start: Mapping[str, Any] | None = None
    begin: int = 0
    stop_at: int | None = None
    checkpoint_every: int = 10


def run(folder: Path, cases: Sequence[Case], ranks: int = 2) -> list[list[list[dict[str, Any]]]]:
    """Run cases one after another in one gang; return what each rank was told of each: `[case][rank]`.

    Shards of case i are in `folder/case-i`.
    """
    each(folder, _cases, ranks, *cases)
    by_rank = [torch.load(folder / f"told-{rank}.pt", weights_only=True) for rank in range(ranks)]
    return [[told[index] for told in by_rank] for index in range(len(cases))]


def each(folder: Path, function: Callable[..., None], ranks: int, *args: Any) -> None:
    """Call a function on every rank, with the rank, the number of ranks and the folder before its own arguments."""
    folder.mkdir(exist_ok=True, parents=True)
    mp.spawn(_launch, (folder, function, ranks, args), nprocs=1)


def losses(told: Sequence[Sequence[dict[str, Any]]]) -> dict[int, float]:
    """Return the loss of each step that the first rank told."""
    return {one["step"]: one["values"]["train/loss"] for one in told[0] if one["kind"] == "step"}


def files(told: Sequence[Sequence[dict[str, Any]]], step: int) -> list[dict[str, Any]]:
    """Return the files that the ranks wrote after a step."""
    return [one["file"] for rank in told for one in rank if one["kind"] == "state" and one["step"] == step]


def _launch(_: int, folder: Path, function: Callable[..., None], ranks: int, args: tuple[Any, ...]) -> None:
    """Fork the ranks off a process that has imported all they need, and has no threads."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401

    optimizers.build(settings().optimizer, [torch.nn.Parameter(torch.zeros(1))])  # imports what a step takes
    mp.start_processes(_process, (folder, function, ranks, args), nprocs=ranks, start_method="fork")


def _process(rank: int, folder: Path, function: Callable[..., None], ranks: int, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    join = f"file://{folder}/join-{ranks}"
    dist.init_process_group("gloo", join, rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
    function(rank, ranks, folder, *args)
    dist.barrier()
    dist.destroy_process_group()


def _cases(rank: int, ranks: int, folder: Path, *cases: Case) -> None:
    from trainers.zero import program

    told = []
    for index, case in enumerate(cases):
        context = Context(rank, ranks, case.stop_at)
        program.run(
            context,
            settings=case.settings._asdict(),
            dataset=dataset(case.kind),
            start=dict(case.start or {}),
            begin=case.begin,
            evaluate_every=5,
            evaluate_batch=4,
            checkpoint_every=case.checkpoint_every,
            folder=f"{folder}/case-{index}",
        )
        told.append(context.told)
    torch.save(told, folder / f"told-{rank}.pt")
