"""What one slow worker costs local learning: asynchronous beside lossless, at equal samples and at equal time.

AugLocal on Fashion-MNIST (images averaged to 14 x 14) in two modules, one a worker, at a constant learning rate; both
regimes take the same batches in the same order. Worker 0 or 1 is 1, 2 or 4 times as slow as it would be.

    simulated   one process and the virtual clock of `cluster.workers: 0`: time is in batches of a worker that is not
                slowed. Of the lossless regime it is the slowest worker's batches times its slowness, queues never
                empty and transfers free, which is the best it could do.
    real        two processes of one thread; the slow one sleeps after each batch, for the seconds that it took from
                when its input was there, times (slowness - 1). Models are put together from what each worker had at
                the same moment.

*Equal samples* is the end, where each worker has trained on as many batches, some of them more than once. *Equal time*
is at shares of what the lossless regime needs when nobody is slow. In an asynchronous run workers wait for each other
after every `--quota` batches, where an experiment evaluates; by default at the end alone, so that a fast worker is done
long before a slow one.

    python -m benchmarks.local_slow [--steps 300] [--seeds 3] [--quota N] [--only simulated real]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.local_accuracy import NETS, images
from benchmarks.workloads import Plain, in_processes
from strategies.seeds import integer
from trainers import modules
from trainers.data.base import Dataset
from trainers.decoupled import program
from trainers.decoupled.inline import InlineReplay, InlineWorkers
from trainers.decoupled.replaying import ReplayingWorker
from trainers.decoupled.settings import Settings, build
from trainers.pipeline.state import merge
from trainers.pipeline.transport import GroupTransport

SLOWNESS = (1, 2, 4)
SHARES = (0.25, 0.5, 0.9)
"""Moments at which models are measured, in what the lossless regime needs when nobody is slow."""
END = -1.0
BUFFERED = ("staleness", "reused", "unused")


class Case(NamedTuple):
    """One run: its regime, which worker is slow, and how slow."""

    regime: str
    slow: int
    times: int


REGIMES = ("lossless", "asynchronous")
CASES = [
    *(Case(regime, 0, 1) for regime in REGIMES),
    *(Case(regime, slow, times) for times in SLOWNESS[1:] for slow in (0, 1) for regime in REGIMES),
]


def settings(case: Case, steps: int, seed: int, quota: int | None = None) -> Settings:
    """Return the training of a case."""
    slowdown = [1.0, 1.0]
    slowdown[case.slow] = float(case.times)
    return Settings(
        model=NETS["resnet"],
        seed=seed,
        model_seed=integer(seed, "model"),
        rule={"name": "auglocal", "depth": 2, "modules": 2},
        shares=(1, 1),
        batch_size=64,
        steps=steps,
        evaluate_batch=500,
        optimizer={"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
        learning_rate={"name": "constant", "warmup_steps": 20, "final": 0.0},
        queue=1 if case.regime == "asynchronous" else 4,
        regime=case.regime,
        buffer=4,
        quota=quota or steps,
        slowdown=tuple(slowdown),
    )


@cache
def pixels() -> Dataset:
    """Return the data."""
    return images(14, 20_000)


# ------------------------------------------------------------------------------------------------------- simulated


@cache
def lossless(steps: int, seed: int) -> dict[int, float]:
    """Return the accuracy of the lossless regime after batches that some case asks for: speeds do not change it."""
    data, plain = pixels(), settings(Case("lossless", 0, 1), steps, seed)
    workers, due = (
        InlineWorkers(plain, data),
        {batches_by(share, times, steps) for share in SHARES for times in SLOWNESS},
    )
    found = {}
    for number in range(1, steps + 1):
        workers.step(number)
        if number in due or number == steps:
            found[number] = 100 * workers.evaluate(number)["test/accuracy"]
    return found


def batches_by(share: float, times: int, steps: int) -> int:
    """Return how many batches the lossless regime has done by then."""
    return max(1, int(share * steps / times))


def simulated(case: Case, steps: int, seed: int, quota: int | None) -> dict[str, float]:
    """Return accuracies at `SHARES` of the time and at the end, the end's time, and what became of batches.

    With quotas at the end alone: time then passes in leaps.
    """
    if case.regime == "lossless":
        known = lossless(steps, seed)
        at = {f"{share:g}": known[batches_by(share, case.times, steps)] for share in SHARES}
        return {**at, "end": known[steps], "time": float(steps * case.times)}
    data, plain = pixels(), settings(case, steps, seed, quota)
    replay, found = InlineReplay(plain, data), {}
    left = [] if quota else [(share * steps, f"{share:g}") for share in SHARES]
    behind, done, clock = dict.fromkeys(BUFFERED, 0.0), 0, 0.0
    for number in range(1, steps + 1):
        clock = replay.step(number)["time/virtual"]
        while number == steps or (left and clock >= left[0][0]):
            told = replay.evaluate(number)
            found["end" if number == steps else left.pop(0)[1]] = 100 * told["test/accuracy"]
            since, done = number - done, number
            for name in BUFFERED:  # means since the last evaluation, but a number of those not used
                behind[name] += told.get(f"workers/{name}_1", 0.0) * (1 if name == "unused" else since)
            if number == steps:
                break
    behind = {name: value if name == "unused" else value / steps for name, value in behind.items()}
    return {**found, "time": clock, **behind}


# ------------------------------------------------------------------------------------------------------------ real


def measure(rank: int, send: Callable[[Any], None], steps: int) -> None:
    """Run all cases; rank 0 sends `(case, [(when done, what was told, states by share of the time) by rank])`."""
    data, whole_s = pixels(), 0.0
    for case in CASES:
        plain = settings(case, steps, 0)
        worker = program.make(Plain(rank, 2), plain, data, time.time())
        if isinstance(worker, ReplayingWorker) and rank:
            worker.listen(worker.link.inbox(GroupTransport(range(2), rank, torch.device("cpu"))))
        left = [share for share in SHARES if whole_s]
        states: dict[float, Any] = {}
        dist.barrier()
        began = time.perf_counter()
        for number in range(1, steps + 1):
            worker.step(number)
            if rank == case.slow and case.times > 1:
                _, _, _, _, ready, _ = worker._spans[-1][0]  # its input was there
                time.sleep((case.times - 1) * (time.perf_counter() - ready))
            while left and time.perf_counter() - began >= left[0] * whole_s:
                states[left.pop(0)] = plain_state(worker.export())
        done_s = time.perf_counter() - began
        worker.link.flush()
        states |= dict.fromkeys((*left, END), plain_state(worker.export()))
        longest = torch.tensor([done_s], dtype=torch.float64)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        whole_s = whole_s or float(longest)
        parts: list[Any] | None = [None, None] if rank == 0 else None
        dist.gather_object((done_s, buffered(worker), states), parts)  # one pipe takes one writer
        if rank == 0:
            send((case, parts))


def plain_state(trees: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, Any]]:
    """Return a copy that needs no shared memory on its way; of the model and its auxiliary networks alone."""
    wanted = ("model", "auxiliary", "counters")
    return {tree: {name: t.numpy().copy() for name, t in trees[tree].items()} for tree in wanted if tree in trees}


def buffered(worker: Any) -> dict[str, float]:
    """Return what became of the batches that reached a worker's buffer."""
    age, steps = getattr(worker, "_stale", (0, 0))
    if not steps:
        return {}
    return {"staleness": age / steps, "reused": worker._again / steps, "unused": float(worker.buffer.num_unused)}


def real(steps: int) -> Iterator[tuple[Case, dict[str, float]]]:
    """Yield for each case what `simulated` returns, in seconds; of the first, accuracy at the end alone."""
    for case, ((first_s, _, first), (last_s, about, last)) in in_processes(measure, 2, steps):
        accuracies = {
            "end" if share == END else f"{share:g}": accuracy(case, steps, first[share], last[share]) for share in first
        }
        yield case, {**accuracies, "time": max(first_s, last_s), **about}


def accuracy(case: Case, steps: int, *parts: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the accuracy of a model put together from both workers' parts, in percent."""
    data, plain = pixels(), settings(case._replace(regime="lossless"), steps, 0)
    whole = InlineWorkers(plain, data)
    trees = [
        {tree: {n: torch.from_numpy(a) for n, a in named.items()} for tree, named in part.items()} for part in parts
    ]
    whole.restore(merge(trees, list(dict(modules.everything(build(plain, data).model)))))
    return 100 * whole.evaluate(steps)["test/accuracy"]


# ----------------------------------------------------------------------------------------------------------- table


def line(case: Case, runs: Sequence[Mapping[str, float]], steps: int) -> str:
    """Return a row of Markdown: means over runs, and the sample deviation where there are several."""
    cells = [case.regime, f"worker {case.slow}, {case.times}x" if case.times > 1 else "nobody"]
    for name in (*(f"{share:g}" for share in SHARES), "end"):
        values = [run[name] for run in runs if name in run]
        spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "-")
    cells.append(f"{statistics.mean(run['time'] for run in runs):.0f}")
    cells.append(f"{statistics.mean(steps / run['time'] for run in runs):.2f}")
    about = [statistics.mean(run.get(name, 0.0) for run in runs) for name in BUFFERED]
    cells += [f"{about[0]:.1f}", f"{about[1]:.0%}", f"{about[2] / steps:.0%}"] if any(about) else ["-", "-", "-"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--quota", type=int, help="batches between two waits, of what is simulated; without it: all")
    parser.add_argument("--seeds", type=int, default=3, help="of what is simulated")
    parser.add_argument("--only", nargs="+", default=["simulated", "real"], choices=["simulated", "real"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.steps
    shares = " | ".join(f"at {share:g}" for share in SHARES)
    for kind in arguments.only:
        unit = "seconds" if kind == "real" else "virtual time"
        print(f"{kind}, {steps} batches of each worker")
        print(f"| regime | slow | {shares} | end | {unit} | batches / time | age | again | lost |")
        print("|" + "---|" * (len(SHARES) + 8), flush=True)
        if kind == "real":
            for case, found in real(steps):
                print(line(case, [found], steps), flush=True)
            continue
        for case in CASES:
            if case.regime == "lossless" and case.slow:  # the same on this clock, whoever is slow
                continue
            if arguments.quota and case.regime == "lossless":
                continue
            runs = [simulated(case, steps, seed, arguments.quota) for seed in range(arguments.seeds)]
            print(line(case, runs, steps), flush=True)


if __name__ == "__main__":
    main()
