"""What this project does on one GPU, without Ray: each part in a process of its own, and one table of all of them.

    pipeline       a transformer as one stage, as four stages by turns, with recomputation, in bf16, with 8-bit
                   activations: milliseconds of a step, and the most memory that torch had allocated
    zero           a model whose weights, gradients and AdamW states are above a memory cap: ZeRO without and with
                   offload to the host, one rank; what does not fit is said, not counted
    graph          an epoch of a deep graph network, four stages in chunks, and the whole graph at once
    aggregators    robust aggregators on 100 vectors
    parity         the same small runs on the device and on the CPU, in float64: the largest difference of a loss

The first step of everything is a warm-up; times are medians of `--steps` with the least and the most. A GPU holds all
stages by turns here, so stages cost time and save nothing: what is shown is that they run there and what they cost. On
a CPU everything runs at a small size, to try the script; memory is then not counted.

    python -m benchmarks.gpu_suite [--device cuda] [--parts pipeline zero graph aggregators parity] [--steps 10]
                                   [--cap-mib 4096]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.workloads import Deep
from trainers.data.graphs.generated import power_law
from trainers.graph.inline import InlineGraphPipeline
from trainers.graph.settings import Settings as GraphSettings
from trainers.pipeline.inline import InlinePipeline

PARTS = ("parity", "pipeline", "zero", "graph", "aggregators")
MIB = 2**20
INT8 = {
    "activations": "int8", "groups": 8, "layers": None, "min_elements": 1024, "rounding": "stochastic",
    "range": "running",
}  # fmt: skip
CONSTANT = {"name": "constant", "warmup_steps": 0, "final": 0.0}
ADAMW = {"name": "adamw", "lr": 1e-4}

Row = dict[str, str]


class Watch:
    """Times steps on a device, and the memory they take.

    Args:
        device: where. steps: timed after the first.
    """

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps = device, steps

    def row(self, part: str, what: str, make: Callable[[], Callable[[int], Any]]) -> Row:
        """Build something, make its steps, and say what they took."""
        cuda = self.device.type == "cuda"
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            step = make()
            step(1)
            taken = [self._seconds(step, number) for number in range(2, self.steps + 2)]
        except torch.OutOfMemoryError:
            return {"part": part, "what": what, "ms a step": "does not fit", "MiB": "-"}
        low, high = 1000 * min(taken), 1000 * max(taken)
        told = f"{1000 * statistics.median(taken):.1f} ({low:.1f} to {high:.1f})"
        memory = f"{torch.cuda.max_memory_allocated() / MIB:,.0f}" if cuda else "-"
        return {"part": part, "what": what, "ms a step": told, "MiB": memory}

    def _seconds(self, step: Callable[[int], Any], number: int) -> float:
        self._wait()
        began = time.perf_counter()
        step(number)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


# -------------------------------------------------------------------------------------------------------- parts


def pipeline(watch: Watch) -> Iterator[Row]:
    """One transformer in several ways."""
    big = watch.device.type == "cuda"
    deep = Deep("transformer", 16, 1024, 32, 512) if big else Deep("transformer", 4, 64, 8, 32)
    data = deep.dataset(batches=1)
    ways: dict[str, dict[str, Any]] = {
        "one stage": {"stages": 1, "microbatches": 1},
        "four stages, 8 micro-batches": {},
        "four stages, zero-bubble": {"schedule": "zero-bubble"},
        "recomputed": {"recompute": ("always",) * 4},
        "bf16": {"precision": "bf16"},
        "8-bit activations": {"memory": INT8},
        "8-bit activations, bf16": {"memory": INT8, "precision": "bf16"},
    }
    for what, changes in ways.items():
        asked = {"stages": 4, "schedule": "gpipe", "microbatches": 8, "optimizer": ADAMW, **changes}
        settings = deep.settings(asked.pop("stages"), asked.pop("schedule"), asked.pop("microbatches"), **asked)
        yield watch.row(
            "pipeline", f"{what}: {deep}", lambda settings=settings: InlinePipeline(settings, data, watch.device).step
        )


def zero(watch: Watch, cap_mib: int) -> Iterator[Row]:
    """A model too large for the cap, with its states on the device and on the host."""
    from trainers.zero import engine
    from trainers.zero.rank import Rank
    from trainers.zero.settings import Settings

    big = watch.device.type == "cuda"
    width = 1024 if big else 64
    layers = (cap_mib * MIB // 12) // (12 * width * width) if big else 2  # 16 bytes a weight: a third above the cap
    deep = Deep("transformer", layers, width, 8, 256 if big else 16)
    data = deep.dataset(batches=1)
    if big:
        whole = torch.cuda.get_device_properties(watch.device).total_memory
        torch.cuda.set_per_process_memory_fraction(cap_mib * MIB / whole)
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if big else "gloo"
        dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        for stage, offload, precision in ((0, "none", None), (3, "none", None), (2, "cpu", "bf16"), (3, "cpu", "bf16")):
            settings = Settings(
                model={"name": "transformer", "dtype": "float32", "layers": layers, "width": width, "heads": 4},
                seed=1, model_seed=1, ranks=1, stage=stage, offload=offload, nvme_folder=None, batch_size=deep.batch,
                accumulate=1, optimizer=ADAMW, learning_rate=CONSTANT, clip_norm=None, loss={"reduction": "mean"},
                precision=precision, steps=1_000_000,
            )  # fmt: skip

            def make(settings: Settings = settings) -> Callable[[int], Any]:
                made = engine.make(settings, data, watch.device)
                return Rank(settings, data, made, 0, watch.device, 8).step

            what = f"stage {stage}, offload {offload}, {precision or 'float32'}: {deep}"
            yield watch.row("zero" + (f", cap {cap_mib} MiB" if big else ""), what, make)
        dist.destroy_process_group()


def graph(watch: Watch) -> Iterator[Row]:
    """A deep network on a generated graph."""
    big = watch.device.type == "cuda"
    data = power_law(seed=0, vertices=100_000 if big else 500, degree=20, features=100 if big else 8)
    for what, changes in {"whole graph": {}, "four stages, 16 chunks": {"stages": 4, "slots": 16}}.items():
        settings = _graph(8, 100 if big else 8, "float32", **changes)
        yield watch.row(
            "graph", f"{what}: {data.num_vertices:,} vertices, {data.num_edges:,} edges, 8 GCN layers",
            lambda settings=settings: InlineGraphPipeline(settings, data, watch.device).epoch,
        )  # fmt: skip


def _graph(layers: int, width: int, dtype: str, stages: int = 1, slots: int = 1) -> GraphSettings:
    share = [len(range(stage, layers, stages)) for stage in range(stages)]
    return GraphSettings(
        model={"name": "gcn", "layers": layers, "hidden": width, "dropout": 0.0, "dtype": dtype}, seed=1, model_seed=1,
        stages=stages, ways=1, slots=slots, chunking="metis", layers=tuple(share), shuffle=True, refresh=1,
        correction=1.0, recompute=False, kernel="auto", optimizer=ADAMW, learning_rate=CONSTANT, clip_norm=None,
        epochs=1_000_000, patience=None,
    )  # fmt: skip


def aggregators(watch: Watch) -> Iterator[Row]:
    """Some robust aggregators."""
    from strategies import robust

    size = 1_000_000 if watch.device.type == "cuda" else 10_000
    updates = torch.randn(100, size, generator=torch.Generator().manual_seed(0)).to(watch.device)
    for name, of in {
        "geometric median": robust.geometric_median,
        "trimmed mean": lambda u: robust.trimmed_mean(u, 20),
        "multi-Krum": lambda u: robust.multi_krum(u, 20),
        "nearest neighbour mixing": lambda u: robust.nearest_neighbor_mixing(u, 20),
    }.items():
        yield watch.row("aggregators", f"{name}: n = 100, d = {size:,}", lambda of=of: lambda _: of(updates))


def parity(watch: Watch) -> Iterator[Row]:
    """The losses of three steps here and on the CPU, in float64."""
    deep = Deep("transformer", 4, 32, 6, 16)
    data = deep.dataset(batches=4)
    settings = deep.settings(2, "gpipe", 3, model={**deep.settings(2, "gpipe", 3).model, "dtype": "float64"})

    def pipelined(device: torch.device) -> list[float]:
        made = InlinePipeline(settings, data, device)
        return [made.step(number).loss for number in range(1, 4)]

    vertices = power_law(seed=0, vertices=300, degree=8, features=8)

    def chunked(device: torch.device) -> list[float]:
        made = InlineGraphPipeline(_graph(4, 8, "float64", 2, 4), vertices, device)
        return [made.epoch(number).loss for number in range(1, 4)]

    for what, run in {"pipeline, 2 stages": pipelined, "graph pipeline, 2 stages": chunked}.items():
        pairs = zip(run(watch.device), run(torch.device("cpu")), strict=True)
        worst = max(abs(here - there) / abs(there) for here, there in pairs)
        yield {"part": "parity", "what": f"{what}: losses off by at most {worst:.1e}", "ms a step": "-", "MiB": "-"}


# -------------------------------------------------------------------------------------------------------- table


def alone(part: str, arguments: argparse.Namespace) -> None:
    """Run one part in this process, and print each row as a line of JSON when it is there."""
    watch = Watch(torch.device(arguments.device), arguments.steps)
    rows = {
        "parity": parity, "pipeline": pipeline, "graph": graph, "aggregators": aggregators,
        "zero": lambda watch: zero(watch, arguments.cap_mib),
    }[part](watch)  # fmt: skip
    for row in rows:
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cap-mib", type=int, default=4096, help="memory that a model must not exceed, part zero")
    parser.add_argument("--alone", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --device cpu tries the script at a small size")
    if arguments.alone:
        alone(arguments.alone, arguments)
        return
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU, small sizes"
    print(f"torch {torch.__version__}, {name}\n\n| part | what | ms a step | MiB |\n|---|---|---|---|", flush=True)
    failed = []
    for part in arguments.parts:
        command = [sys.executable, "-m", "benchmarks.gpu_suite", *sys.argv[1:], "--alone", part]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    row = json.loads(line)
                    print(f"| {row['part']} | {row['what']} | {row['ms a step']} | {row['MiB']} |", flush=True)
        if process.returncode:
            failed.append(f"{part} (exit {process.returncode})")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what it printed is above")


if __name__ == "__main__":
    main()
