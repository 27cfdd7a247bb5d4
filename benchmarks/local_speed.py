"""How fast one worker trains its share of a round: plain PyTorch, this project's loop and batched programs, by hand.

W1: 10 of 200 clients with 100 images 3 x 32 x 32, CNN (convolutions 3-32 and 32-64, pooled, dense 128, 10). W2: 50 of
1000 clients with 20 examples of 784 features, MLP 784-64-10. Batches of 10, one epoch, SGD, float32, one thread; a
side reads the examples, trains, and sums the clients' changes. Sides alternate within the process. The figure is the
median over segments of the ratio to the plain loop in the same segment, with its range.

    python -m benchmarks.local_speed [--segments 9] [--only W1 W2] [--clock wall|thread] [--profile]

`--clock thread` counts the thread's own seconds: for machines that are busy with something else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.partition.base import Partition
from strategies.seeds import generator
from trainers import models, modules
from trainers.batched import Batched, Block, gather
from trainers.batched.general import General
from trainers.batched.orders import schedule
from trainers.batched.stacked import Stacked
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import LocalSettings, Task, train

LR, BATCH, SEED = 0.05, 10, 1
Side = Callable[[], dict[str, Tensor]]


class Work(NamedTuple):
    """One worker's share of a round."""

    name: str
    model: dict[str, object]
    dataset: Dataset
    partition: Partition
    clients: tuple[int, ...]

    def built(self) -> nn.Module:
        """Return the model, the same each time."""
        return models.build(self.model, input_shape=self.dataset.input_shape, num_classes=10, seed=SEED)

    def examples(self, client: int) -> tuple[Tensor, Tensor]:
        """Return one client's examples."""
        rows = self.partition.rows(client)
        x = to_tensor(self.dataset.train_x[rows], self.dataset, torch.float32)
        return x, to_labels(self.dataset.train_y[rows])

    def read(self, tasks: Sequence[Task]) -> Block:
        """Return the examples of tasks."""
        rows = [self.partition.rows(task.client) for task in tasks]
        return gather(self.dataset, tasks, rows, SETTINGS, torch.float32, torch.device("cpu"), run_seed=SEED)

    def orders(self, client: int) -> Tensor:
        """Return the order of one client's examples in the epoch."""
        size = len(self.partition.rows(client))
        return torch.from_numpy(generator(SEED, "batches", 1, client).permutation(size))


def work(name: str) -> Work:
    """Return W1 or W2, its data drawn from a fixed seed."""
    clients, size, shape, count = (200, 100, (3, 32, 32), 10) if name == "W1" else (1000, 20, (784,), 50)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(clients * size, *shape)).astype(np.float32)
    y = rng.integers(10, size=clients * size)
    dataset = Dataset(name, "classification", x, y, x[:1], y[:1], 10, shape)
    partition = Partition(np.arange(len(x)), np.arange(clients + 1) * size)
    model = {"name": "cnn"} if name == "W1" else {"name": "mlp", "hidden": [64]}
    chosen = tuple(sorted(rng.choice(clients, count, replace=False).tolist()))
    return Work(name, {**model, "dtype": "float32"}, dataset, partition, chosen)


SETTINGS = LocalSettings(1, None, BATCH, {"name": "sgd", "lr": LR}, None)


def plain(job: Work, fast: bool) -> Side:
    """Return what one writes without thinking, or with channels-last weights and torch's fused step."""
    model = job.built().to(memory_format=torch.channels_last if fast else torch.contiguous_format)
    start = modules.snapshot(model)

    def run() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for client in job.clients:
            modules.load(model, start)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR, fused=fast or None)
            x, y = job.examples(client)
            order = job.orders(client)
            for first in range(0, len(x), BATCH):
                chosen = order[first : first + BATCH]
                optimizer.zero_grad()
                functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
                optimizer.step()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    change = len(x) * (parameter - start[name])
                    total[name] = total[name] + change if name in total else change
        return total

    return run


def loop(job: Work) -> Side:
    """Return this project's loop."""
    model = job.built()
    start = modules.snapshot(model)

    def run() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for client in job.clients:
            x, y = job.examples(client)
            delta = train(model, Task(client, 1, start), x, y, SETTINGS, run_seed=SEED).delta
            if total:
                torch._foreach_add_(list(total.values()), list(delta.values()), alpha=len(x))
            else:
                total = {name: tensor * len(x) for name, tensor in delta.items()}
        return total

    return run


def batched(job: Work, block: int) -> Side:
    """Return this project's batched program on fixed blocks of clients."""
    model = job.built()
    start = modules.snapshot(model)
    program = Batched(model, SETTINGS, job.dataset.input_shape)

    def run() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for first in range(0, len(job.clients), block):
            tasks = [Task(client, 1, start) for client in job.clients[first : first + block]]
            stacked = program.train(tasks, job.read, run_seed=SEED)
            part = stacked.weighted_sum([float(len(job.partition.rows(task.client))) for task in tasks])
            total = {name: total[name] + tensor for name, tensor in part.items()} if total else part
        return total

    return run


def vmapped(job: Work, block: int) -> Side:
    """Return `torch.func` over stacked clients."""
    model = job.built()
    start = modules.snapshot(model)
    program = General(model, list(start), SETTINGS)

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for first in range(0, len(job.clients), block):
            tasks = [Task(client, 1, start) for client in job.clients[first : first + block]]
            data = job.read(tasks)
            plan = schedule(tasks, data.sizes, SETTINGS, SEED, data.chosen)
            part = Stacked([program.train(tasks, data, plan)]).weighted_sum([float(size) for size in data.sizes])
            total = {name: total[name] + tensor for name, tensor in part.items()} if total else part
        return total

    return run


def by_hand(job: Work, block: int) -> Side:
    """Return the MLP of W2 written out: stacked weights, `baddbmm` forward, backward straight into the weights."""
    start = modules.snapshot(job.built())
    names = list(start)

    @torch.no_grad()
    def run() -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for first in range(0, len(job.clients), block):
            clients = job.clients[first : first + block]
            count = len(clients)
            w1, b1, w2, b2 = (start[name].expand(count, *start[name].shape).clone() for name in names)
            pairs = [job.examples(client) for client in clients]
            orders = [job.orders(client) for client in clients]
            x = torch.stack([pair[0][order] for pair, order in zip(pairs, orders, strict=True)])
            y = torch.stack([pair[1][order] for pair, order in zip(pairs, orders, strict=True)])
            for begin in range(0, x.shape[1], BATCH):
                xs, ys = x[:, begin : begin + BATCH], y[:, begin : begin + BATCH]
                hidden = torch.baddbmm(b1.unsqueeze(1), xs, w1.transpose(1, 2)).relu_()
                rows = torch.baddbmm(b2.unsqueeze(1), hidden, w2.transpose(1, 2)).softmax(-1)
                rows.scatter_add_(-1, ys.unsqueeze(-1), rows.new_full((1, 1, 1), -1.0).expand(*ys.shape, 1))
                rows /= xs.shape[1]
                below = torch.bmm(rows, w2) * (hidden > 0)
                w2.baddbmm_(rows.transpose(1, 2), hidden, alpha=-LR)
                b2.sub_(rows.sum(1), alpha=LR)
                w1.baddbmm_(below.transpose(1, 2), xs, alpha=-LR)
                b1.sub_(below.sum(1), alpha=LR)
            weights = torch.full((count,), float(x.shape[1]))
            for name, stacked in zip(names, (w1, b1, w2, b2), strict=True):
                part = torch.tensordot(weights, stacked.sub_(start[name]), dims=1)
                total[name] = total[name] + part if name in total else part
        return total

    return run


def sides(name: str) -> tuple[Work, dict[str, Side]]:
    """Return a workload and everything that is compared on it, the plain loop first."""
    job = work(name)
    found = {"plain": plain(job, False), "plain, channels-last, fused": plain(job, True), "our loop": loop(job)}
    if name == "W1":
        return job, {**found, "batched": batched(job, 10)}
    return job, {
        **found,
        "vmap, 25": vmapped(job, 25),
        "by hand, 25": by_hand(job, 25),
        **{f"batched, {block}": batched(job, block) for block in (7, 25, 50)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=["W1", "W2"], choices=["W1", "W2"])
    parser.add_argument("--clock", choices=["wall", "thread"], default="wall")
    parser.add_argument("--profile", action="store_true", help="show where torch's operations spend the time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.perf_counter if arguments.clock == "wall" else time.thread_time
    for name in arguments.only:
        job, compared = sides(name)
        expected = compared["plain"]()
        seconds: dict[str, list[float]] = {side: [] for side in compared}
        away = {}
        for side, run in compared.items():
            got = run()
            away[side] = max(float((got[key] - t).norm() / t.norm()) for key, t in expected.items())
        for _ in range(arguments.segments):
            for side, run in compared.items():
                began = clock()
                run()
                seconds[side].append(clock() - began)
        print(
            f"{name}: one worker's {len(job.clients)} clients, {arguments.segments} segments, {arguments.clock} clock"
        )
        for side, values in seconds.items():
            ratios = [first / value for first, value in zip(seconds["plain"], values, strict=True)]
            print(
                f"  {side:30s} {statistics.median(values):8.4f} s   {statistics.median(ratios):6.2f}x plain "
                f"({min(ratios):.2f} to {max(ratios):.2f})   differs by {away[side]:.0e}"
            )
        if arguments.profile:
            best = list(compared)[-1]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
                compared[best]()
            table = seen.key_averages(group_by_input_shape=True)
            print(f"  operations of {best!r}:")
            print(table.table(sort_by="self_cpu_time_total", row_limit=15, max_shapes_column_width=60))


if __name__ == "__main__":
    main()
