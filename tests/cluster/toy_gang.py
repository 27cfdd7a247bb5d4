"""Programs for the tests of gangs: they report, add up, raise, die or wait as they are told."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def count(context: Any, *, num_reports: int) -> None:
    for number in range(num_reports):
        context.report({"number": number, "rank": context.rank, "size": context.world_size, "device": context.device})


def add(context: Any, *, values: dict[str, Any]) -> None:
    tensor = torch.full((3,), float(context.rank + 1), dtype=torch.float64)
    dist.all_reduce(tensor)
    shared = values["array"]
    context.report(
        {
            "sum": tensor.numpy(),
            "mean": float(shared.mean()),
            "writeable": shared.flags.writeable,
            "owns": shared.flags.owndata,
            "threads": torch.get_num_threads(),
            "backend": dist.get_backend(),
        }
    )


def count_and_add(context: Any, *, num_reports: int, values: dict[str, Any]) -> None:
    count(context, num_reports=num_reports)
    add(context, values=values)


def echo(context: Any, **settings: Any) -> None:
    context.report(settings)


def until_word(context: Any, *, word: str, limit: int) -> None:
    for number in range(limit):
        heard = context.report(number)
        if heard == word:
            context.report(f"heard {heard}")
            return
        threading.Event().wait(0.01)
    raise TimeoutError(word)


def fail_on_one(context: Any, *, text: str) -> None:
    context.report(os.getpid())
    if context.rank == 1:
        raise ValueError(text)
    dist.recv(torch.zeros(1), src=1)


def leave(context: Any) -> None:
    if context.rank == 1:
        raise SystemExit(3)
    dist.recv(torch.zeros(1), src=1)


def die_on_one(context: Any) -> None:
    context.report(os.getpid())
    dist.barrier()
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.recv(torch.zeros(1), src=1)


def wait_for_ever(context: Any) -> None:
    context.report(os.getpid())
    dist.recv(torch.zeros(1), src=(context.rank + 1) % context.world_size)


def report_a_lock(context: Any) -> None:
    context.report(threading.Lock())


def large(context: Any, *, num_bytes: int, times: int) -> None:
    for number in range(times):
        context.report({"number": number, "array": np.full(num_bytes, number, dtype=np.uint8), "raw": b"x" * num_bytes})


def own_module(context: Any, *, name: str) -> None:
    import importlib

    context.report(importlib.import_module(name).ANSWER)


def environment(context: Any, *, names: list[str]) -> None:
    context.report({"cwd": str(Path.cwd()), **{name: os.environ.get(name) for name in names}})
