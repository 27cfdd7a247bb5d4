"""Work that several benchmarks share: data and models of fixed sizes, made up from a seed, and processes for them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from benchmarks.limited_network import enter
from strategies.pipeline import chunks_of
from trainers.data.base import Dataset
from trainers.pipeline.settings import Settings

VOCABULARY, CLASSES = 65, 10
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "THP_MEM_ALLOC_ENABLE"), "1")
"""What a gang gives its ranks."""


def images(
    clients: int,
    per_client: int,
    channels: int = 3,
    side: int = 32,
    classes: int = 10,
    signal: float = 1.0,
    noise: float = 2.0,
) -> dict[str, Any]:
    """Return random float32 images `[clients * per_client, channels, side, side]`: a class's pattern under noise.

    Args:
        signal, noise: standard deviations of a pixel over patterns, and over images of one pattern.
    """
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(classes, channels, side, side)).astype(np.float32)

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(classes, size=count)
        added = rng.normal(size=(count, channels, side, side)).astype(np.float32)
        return np.float32(signal) * patterns[y] + np.float32(noise) * added, y

    train_x, train_y = sample(clients * per_client)
    test_x, test_y = sample(1000)
    return {
        "name": "benchmark-images", "train_x": train_x, "train_y": train_y, "test_x": test_x, "test_y": test_y,
        "num_classes": classes,
    }  # fmt: skip


class Deep(NamedTuple):
    """A network of equal layers, for pipelines.

    Args:
        kind: `transformer`, a language model, or `mlp`. layers: blocks of the one, hidden layers of the other.
        length: of a sequence; the MLP has none.
    """

    kind: str
    layers: int
    width: int
    batch: int
    length: int

    def __str__(self) -> str:
        sequence = f", sequences of {self.length}" if self.kind == "transformer" else ""
        return f"{self.layers}-layer {self.kind}, width {self.width}{sequence}, batch {self.batch}"

    def dataset(self, batches: int = 4) -> Dataset:
        """Return random examples: tokens and their successors, or features and classes."""
        rng, count = np.random.default_rng(0), batches * self.batch
        if self.kind == "transformer":
            text = rng.integers(VOCABULARY, size=(count, self.length + 1))
            x, y, classes, shape = text[:, :-1], text[:, 1:], VOCABULARY, (self.length,)
        else:
            x, y = rng.normal(size=(count, self.width)).astype(np.float32), rng.integers(CLASSES, size=count)
            classes, shape = CLASSES, (self.width,)
        task = "language-model" if self.kind == "transformer" else "classification"
        return Dataset(f"benchmark-{self.kind}", task, x, y, x[:2], y[:2], classes, shape)

    def cut(self, positions: int) -> tuple[int, ...]:
        """Return how many links of the chain each position has: equal layers, what is before and behind at the ends."""
        links = 1 if self.kind == "transformer" else 2  # a hidden layer of the MLP is two, a Linear and a ReLU
        counts = [links * len(part) for part in np.array_split(np.arange(self.layers), positions)]
        counts[0] += 1
        counts[-1] += 1
        return tuple(counts)

    def settings(self, stages: int, schedule: str, microbatches: int, **changes: Any) -> Settings:
        """Return a pipeline of it, trained by plain SGD; `interleaved` has two chunks a stage."""
        positions = stages * chunks_of(schedule, 2)
        model: dict[str, Any] = {"name": self.kind, "dtype": "float32"}
        if self.kind == "transformer":
            model |= {"layers": self.layers, "width": self.width, "heads": 4}
        else:
            model |= {"hidden": [self.width] * self.layers}
        plain = {
            "model": model, "seed": 1, "model_seed": 1, "stages": stages, "replicas": 1, "schedule": schedule,
            "microbatches": microbatches, "layers": self.cut(positions), "recompute": ("never",) * stages,
            "batch_size": self.batch, "accumulate": 1, "optimizer": {"name": "sgd", "lr": 1e-3},
            "learning_rate": {"name": "constant", "warmup_steps": 0, "final": 0.0}, "clip_norm": None,
            "loss": {"reduction": "mean"}, "precision": None, "steps": 1_000_000, **changes,
        }  # fmt: skip
        return Settings(**plain)


TRANSFORMER = Deep("transformer", 16, 256, 32, 128)
MLP = Deep("mlp", 24, 1024, 512, 0)


class Plain(NamedTuple):
    """What `trainers.pipeline.program` needs of a gang, in a process that nobody supervises."""

    rank: int
    world_size: int
    device: str = "cpu"

    def report(self, payload: Any) -> str:
        """Hear the report and say nothing."""
        return ""


def in_processes(
    program: Callable[..., None], num_ranks: int, *arguments: Any, hosts: Sequence[str] = ()
) -> Iterator[Any]:
    """Run `program(rank, send, *arguments)` in processes of one thread each that form a gloo group.

    Args:
        hosts: a network namespace for each rank; see `limited_network`.

    Yields what ranks send. However that ends, no process is left; one whose parent is gone ends by itself.
    """
    import torch.multiprocessing as mp

    ours, theirs = Pipe(duplex=False)
    ending, lifeline = Pipe(duplex=False)
    os.environ.update(ONE_THREAD, GLOO_SOCKET_IFNAME="lo")
    with closing(ours), closing(lifeline), tempfile.TemporaryDirectory() as folder:
        given = (num_ranks, folder, theirs, ending, program, arguments, hosts)
        context = mp.start_processes(_rank, given, num_ranks, join=False, daemon=True, start_method="spawn")
        theirs.close()
        try:
            ended = False
            while not ended:
                ended = context.join(timeout=0.05)  # raises what a rank raised
                try:
                    while ours.poll(0.2):
                        yield ours.recv()
                except EOFError:
                    continue
        finally:
            for process in context.processes:
                process.kill()
                process.join()


def _rank(
    rank: int,
    size: int,
    folder: str,
    out: Connection,
    lifeline: Connection,
    program: Any,
    arguments: Sequence[Any],
    hosts: Sequence[str],
) -> None:
    import torch
    import torch.distributed as dist

    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    if hosts:
        enter(hosts[rank % len(hosts)])
    torch.set_num_threads(1)
    rendezvous, limit = f"file://{folder}/rendezvous", timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=limit)
    program(rank, out.send, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def _end_with(lifeline: Connection) -> None:
    try:
        lifeline.recv()
    except EOFError:
        os._exit(1)
