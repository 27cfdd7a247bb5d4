"""A plain PyTorch loop in two processes: what one would write by hand with no concern for failures or records.

    python -m benchmarks.peers.plain_side TASK ROUNDS default|tuned

Each process keeps the data, receives the model through a pipe of shared memory, trains its half of the cohort with one
thread and returns one weighted sum.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch
import torch.multiprocessing as mp
from torch import nn

from benchmarks.peers.task import Laps, Task, arguments, finish

PROCESSES = 2


def half(pipe: Connection, folder: str, tuned: bool) -> None:
    """Answer `(round, places, model)` with `(weighted sum, weight)` until told None."""
    torch.set_num_threads(1)
    task = Task(folder, tuned=tuned)
    model = task.initialised(nn.Sequential(*task.layers()))
    parameters = [parameter.detach() for parameter in model.parameters()]
    task.load()
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        round_, places, received = asked
        total, weight = [torch.zeros_like(tensor) for tensor in parameters], 0
        for place in places:
            torch._foreach_copy_(parameters, received)
            count = task.train(model, round_, place)
            torch._foreach_add_(total, torch._foreach_sub(parameters, received), alpha=count)
            weight += count
        pipe.send((total, weight))


def main() -> None:
    folder, rounds, tuned = arguments()
    torch.set_num_threads(1)
    task = Task(folder, rounds, tuned)
    model = task.initialised(nn.Sequential(*task.layers()))
    current = [parameter.detach() for parameter in model.parameters()]
    context = mp.get_context("spawn")
    pairs = [context.Pipe() for _ in range(PROCESSES)]
    processes = [context.Process(target=half, args=(theirs, folder, tuned), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    for ours, _ in pairs:
        assert ours.recv() == "ready"
    laps = Laps()
    for round_ in range(task.rounds):
        for index, (ours, _) in enumerate(pairs):
            ours.send((round_, range(index, task.cohort, PROCESSES), current))
        parts = [ours.recv() for ours, _ in pairs]
        weight = sum(part[1] for part in parts)
        for total, _ in parts:
            torch._foreach_add_(current, total, alpha=1 / weight)
        laps.lap()
    for (ours, _), process in zip(pairs, processes, strict=True):
        ours.send(None)
        process.join(10)
    finish(task, model)


if __name__ == "__main__":
    main()
