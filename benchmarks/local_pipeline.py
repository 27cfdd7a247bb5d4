"""Local learning on two workers beside pipelines of the same network with the same cut: two single-thread processes.

    lossless    AugLocal, one auxiliary network: worker 0 sends activations on before it learns, nothing comes back
    ceiling     both workers' own work side by side, each on an input that is there already, nothing sent
    SCHEDULE    backpropagation through both stages, 4 micro-batches a batch, by each of this project's schedules

Sides alternate in segments of some batches, from one barrier to the next; the fill of the pipeline, one batch, is in
the local side's time and in that of every schedule. Ratios are of throughput, the local side's over the other's: more
than 1 means that local learning is faster. Bytes are counted and held against boundary activations plus marks.

    python -m benchmarks.local_pipeline [--depth 20] [--width 16] [--batch 64] [--segments 5] [--batches 12] [--profile]

The cut is the local rule's, by counted multiplications; `--cut N` puts it after N units, on both sides, and
`--pipeline-cut N` for the pipelines alone. `--profile` also prints what each worker's seconds went to, and what the
arithmetic of the schedules allows (`local_profile`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.local_profile import Clocks, Profile, show
from benchmarks.pipeline_sides import spread
from benchmarks.silent import Silent
from benchmarks.workloads import Plain, in_processes
from strategies.local import units
from strategies.pipeline import schedule
from trainers.data.base import CLASSIFICATION, Dataset
from trainers.decoupled import program as local_program
from trainers.decoupled.links import MARK_BYTES
from trainers.decoupled.settings import Settings as LocalSettings
from trainers.decoupled.settings import build
from trainers.pipeline import program as pipeline_program
from trainers.pipeline.layers import chain
from trainers.pipeline.settings import Settings as PipelineSettings
from trainers.pipeline.transport import Spec

SCHEDULES = ("gpipe", "1f1b", "zero-bubble")
MICROBATCHES = 4
FOREVER = 1_000_000


def images(examples: int) -> Dataset:
    """Return made-up images of CIFAR's shape."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((examples, 3, 32, 32)).astype(np.float32)
    y = rng.integers(0, 10, examples)
    return Dataset("images", CLASSIFICATION, x, y, x[:10], y[:10], 10, (3, 32, 32))


def local_settings(arguments: argparse.Namespace) -> LocalSettings:
    """Return the local side's training."""
    num_units = arguments.depth // 2  # the stem and (depth - 2) / 2 blocks; the head is not counted
    modules = 2 if arguments.cut is None else (arguments.cut, num_units - arguments.cut)
    return LocalSettings(
        model=model(arguments),
        seed=1,
        model_seed=1,
        rule={"name": "auglocal", "depth": arguments.auxiliary, "modules": modules},
        shares=(1, 1),
        batch_size=arguments.batch,
        steps=FOREVER,
        evaluate_batch=10,
        optimizer={"name": "sgd", "lr": 1e-3},
        learning_rate={"name": "constant", "warmup_steps": 0, "final": 0.0},
        queue=4,
    )


def model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the network's section."""
    return {
        "name": "resnet", "depth": arguments.depth, "width": arguments.width, "norm": "batch", "dtype": "float32",
    }  # fmt: skip


def cut(arguments: argparse.Namespace, data: Dataset) -> tuple[int, int]:
    """Return where the local rule cuts, in layers of the pipeline's chain, of which the last is the head."""
    built = build(local_settings(arguments), data)
    first = {id(parameter) for parameter in built.modules[0].parameters()}
    layers = chain(built.model).layers
    count = sum(any(id(p) in first for p in layer.module.parameters()) for layer in layers)
    assert len(units(built.model)) == len(layers), "units and layers of this network are the same"
    return count, len(layers) - count


def pipeline_settings(arguments: argparse.Namespace, schedule: str, layers: tuple[int, int]) -> PipelineSettings:
    """Return a pipeline's training of the same network, cut at the same place."""
    return PipelineSettings(
        model=model(arguments),
        seed=1,
        model_seed=1,
        stages=2,
        replicas=1,
        schedule=schedule,
        microbatches=MICROBATCHES,
        layers=layers,
        recompute=("never", "never"),
        batch_size=arguments.batch,
        accumulate=1,
        optimizer={"name": "sgd", "lr": 1e-3},
        learning_rate={"name": "constant", "warmup_steps": 0, "final": 0.0},
        clip_norm=None,
        loss={"reduction": "mean"},
        precision=None,
        steps=FOREVER,
    )


@cache
def _drawn(spec: Spec) -> Tensor:
    random = torch.randn(spec.shape).to(spec.dtype)
    return torch.tensor([1, 0, 0]) if spec.name == "mark" else random.relu()


def measure(
    rank: int, send: Callable[[Any], None], arguments: argparse.Namespace, data: Dataset, layers: tuple[int, int]
) -> None:
    """Run all sides by turns; rank 0 sends `(seconds by side)`, rank 1 once `("bytes", a batch's)`."""
    context = Plain(rank, 2)
    began_s = time.time()
    lossless = local_program.make(context, local_settings(arguments), data, began_s)
    alone = local_program.make(context, local_settings(arguments), data, began_s)
    alone.link._transport = Silent(lambda spec: _drawn(spec).clone())
    ranks = {
        name: pipeline_program.build(context, pipeline_settings(arguments, name, layers), data)
        for name in arguments.schedules
    }
    numbers = dict.fromkeys(("lossless", "ceiling", *ranks), 0)
    clocks = {name: Clocks(side) for name, side in {"lossless": lossless, **ranks}.items()} if arguments.profile else {}

    def one(name: str) -> None:
        numbers[name] += 1
        if name in ranks:
            for _ in ranks[name].step(numbers[name]):
                pass
            if name in clocks:
                clocks[name].step_done()
            return
        outcome = (lossless if name == "lossless" else alone).step(numbers[name])
        if rank == 1 and name == "lossless" and numbers[name] == 1:
            send(("bytes", outcome.values["comm/boundary_bytes"]))

    for segment in range(-1, arguments.segments):
        seconds = {}
        for each in clocks.values() if segment == 0 else ():
            each.clear()
        for name in list(numbers) if segment % 2 == 0 else list(numbers)[::-1]:
            count = 2 if segment < 0 else arguments.batches
            dist.barrier()
            began = time.perf_counter()
            for _ in range(count):
                one(name)
            if name == "lossless":
                lossless.link.flush()
            done = time.perf_counter()
            dist.barrier()
            if name in clocks:
                clocks[name].waited(time.perf_counter() - done)
            seconds[name] = (time.perf_counter() - began) / count
        if rank == 0 and segment >= 0:
            send(("seconds", seconds))
    if clocks:
        own = {name: each.read(arguments.segments * arguments.batches) for name, each in clocks.items()}
        both: list[Any] | None = [None, None] if rank == 0 else None
        dist.gather_object(own, both)
        if both is not None:
            send(("profiles", {name: [one[name] for one in both] for name in own}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("depth", 20), ("width", 16), ("batch", 64), ("auxiliary", 2), ("segments", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batches", type=int, default=12, help="of each side in a segment")
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=SCHEDULES, help="of the pipelines")
    parser.add_argument("--cut", type=int, help="units of the first module and stage")
    parser.add_argument("--pipeline-cut", type=int, help="units of the first stage")
    parser.add_argument("--profile", action="store_true", help="also print what the seconds went to")
    arguments = parser.parse_args()
    data = images(4 * arguments.batch)
    layers = own = cut(arguments, data)
    if arguments.pipeline_cut is not None:
        layers = arguments.pipeline_cut, sum(own) - arguments.pipeline_cut
    rows, profiles = [], dict[str, list[Profile]]()
    for kind, told in in_processes(measure, 2, arguments, data, layers):
        if kind == "bytes":
            built = build(local_settings(arguments), data)
            x = torch.from_numpy(data.train_x[: arguments.batch])
            boundary = boundary_bytes(built.modules[0], x)
            assert told == boundary + MARK_BYTES, f"{told} bytes were sent, {boundary} and a mark expected"
            print(f"bytes of a batch: {told:,.0f}, boundary activations and a mark; none come back")
        elif kind == "profiles":
            profiles = told
        else:
            rows.append(told)
    print(f"ResNet-{arguments.depth} of width {arguments.width}, batches of {arguments.batch}")
    print(f"cut {own}, the pipelines' {layers}")
    print(f"  {'side':<14}{'s / batch':>10}   throughput of lossless over it")
    for name in rows[0]:
        ratios = [row[name] / row["lossless"] for row in rows]
        print(f"  {name:<14}{statistics.median(row[name] for row in rows):>10.4f}   {spread(ratios)}")
    best = [min(row[name] for name in arguments.schedules) / row["lossless"] for row in rows]
    print(f"  over the best schedule of each segment: {spread(best)}")
    if profiles:
        mean = {name: statistics.mean(row[name] for row in rows) for name in profiles}
        show(mean, profiles, {name: schedule(name, 2, MICROBATCHES) for name in arguments.schedules})


def boundary_bytes(module: Any, x: Tensor) -> int:
    """Return the bytes of what a module hands on."""
    return sum(t.numel() * t.element_size() for t in module.infer({"h": x}).values())


if __name__ == "__main__":
    main()
