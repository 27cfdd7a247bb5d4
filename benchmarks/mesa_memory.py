"""Activations in 8 bits: bytes kept for backward, peak memory, time, errors of gradients by groups, and loss curves.

    python -m benchmarks.mesa_memory                       all tables; CIFAR-10's JPEG copy is read where it is at hand
    python -m benchmarks.mesa_memory memory --batches 32 64

Memory and time are of one training step of a vision transformer (patch 4 on 32 x 32 pixels, 65 tokens) on one thread.
Peak memory is that of a process of its own, less what it held before its second step. Time is of the processor, so that
other programs on the machine count less; sides take turns, and the median of their ratios is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers import models
from trainers.activations import Packed, Saving
from trainers.data import to_labels, to_tensor
from trainers.data.base import DataError, Dataset
from trainers.data.registry import load

SIDES: dict[str, dict[str, Any] | None] = {
    "as they are": None,
    "int8": {"groups": "heads"},
    "int8, own range": {"groups": "heads", "range": "own"},
    "int8, nearest": {"groups": "heads", "rounding": "nearest"},
}
SHAPE = (3, 32, 32)


def vit(attention: str, depth: int = 12, width: int = 192, shape: tuple[int, ...] = SHAPE, patch: int = 4) -> nn.Module:
    section = {"name": "vit", "patch": patch, "depth": depth, "width": width, "heads": 3, "attention": attention}
    return models.build(section, input_shape=shape, num_classes=10, seed=1)


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *SHAPE, generator=generator), torch.arange(size) % 10


def step(model: nn.Module, saving: Saving, number: int, x: Tensor, y: Tensor) -> float:
    """Forward and backward of one batch; gradients are left."""
    model.zero_grad(set_to_none=True)
    with saving(number, 0, x):
        returned = model(x)
    loss = functional.cross_entropy(returned, y)
    loss.backward()
    saving.commit()
    return float(loss.detach())


# ------------------------------------------------------------------------------------------------------- memory


class Watch:
    """Bytes that are kept for backward, each block once, parameters left out."""

    def __init__(self, model: nn.Module) -> None:
        self._left_out = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._blocks: dict[int, tuple[object, int]] = {}

    def __call__(self, tensor: Tensor, packed: Packed) -> None:
        if isinstance(packed, Tensor):
            storage = packed.untyped_storage()
            if storage.data_ptr() not in self._left_out:
                self._blocks[storage.data_ptr()] = (packed, storage.nbytes())
        else:
            self._blocks[id(packed.block)] = (packed.block, packed.num_bytes)

    def pack(self, tensor: Tensor) -> Tensor:
        self(tensor, tensor)
        return tensor.detach()

    @property
    def num_bytes(self) -> int:
        return sum(count for _, count in self._blocks.values())


def saved_bytes(attention: str, memory: dict[str, Any] | None, size: int) -> int:
    """Return what is kept between forward and backward."""
    model, (x, y) = vit(attention), batch(size)
    saving, watch = Saving(memory, model, 0), Watch(model)
    if saving.saver is not None:
        saving.saver.watch = watch
        step(model, saving, 1, x, y)
    else:
        with torch.autograd.graph.saved_tensors_hooks(watch.pack, lambda tensor: tensor):
            step(model, saving, 1, x, y)
    return watch.num_bytes


def peak_bytes(attention: str, side: str, size: int) -> int:
    """Return by how much a process of its own grows in a step."""
    asked = json.dumps([attention, side, size])
    command = [sys.executable, "-m", "benchmarks.mesa_memory", "--one", asked]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=1200)
    return int(done.stdout)


def one(attention: str, side: str, size: int) -> int:
    torch.set_num_threads(1)
    model, (x, y) = vit(attention), batch(size)
    saving = Saving(SIDES[side], model, 0)
    step(model, saving, 1, x[:2], y[:2])  # gradients, and whatever libraries make once
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    before = _status("VmRSS")
    step(model, saving, 2, x, y)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def memory_rows(batches: Sequence[int]) -> Iterator[str]:
    yield "| attention | batch | saved, MB | int8 | ratio | process grows by, MB | int8 | less |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for attention in ("fused", "plain"):
        for size in batches:
            saved = [saved_bytes(attention, SIDES[side], size) / 1e6 for side in ("as they are", "int8")]
            peak = [peak_bytes(attention, side, size) / 1e6 for side in ("as they are", "int8")]
            yield (
                f"| {attention} | {size} | {saved[0]:.1f} | {saved[1]:.1f} | {saved[0] / saved[1]:.2f} | "
                f"{peak[0]:.0f} | {peak[1]:.0f} | {1 - peak[1] / peak[0]:.0%} |"
            )


# --------------------------------------------------------------------------------------------------------- time


def time_rows(size: int, rounds: int) -> Iterator[str]:
    yield "| attention | side | processor time, s a step | times as long, median (range) |"
    yield "|---|---|---:|---:|"
    for attention in ("fused", "plain"):
        model, (x, y) = vit(attention, depth=6), batch(size)
        savings = {side: Saving(memory, model, 0) for side, memory in SIDES.items()}
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for number in range(rounds + 1):
            for side, saving in savings.items():
                began = time.process_time()
                step(model, saving, number + 1, x, y)
                seconds[side] += [time.process_time() - began] if number else []
        for side, taken in seconds.items():
            ratios = [a / b for a, b in zip(taken, seconds["as they are"], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            yield f"| {attention} | {side} | {statistics.median(taken):.2f} | {spread} |"


# ------------------------------------------------------------------------------------------------------- errors


def error_rows(data: Dataset, trained: nn.Module, size: int, draws: int) -> Iterator[str]:
    """Gradients of a model that has been trained a little, against exact ones."""
    x, y = examples(data, range(size))
    exact = gradient(trained, Saving(None, trained, 0), x, y)
    yield f"| groups | range | rounding | relative error | cosine | error of the mean of {draws} |"
    yield "|---|---|---|---:|---:|---:|"
    for groups, limits, rounding in (
        *((groups, "own", "stochastic") for groups in (1, 2, 3, 8, 16, "channels")),
        ("heads", "own", "nearest"),
        ("heads", "running", "stochastic"),
        ("heads", "running", "nearest"),
    ):
        memory = {"groups": groups, "range": limits, "rounding": rounding, "min_elements": 1}
        found = []
        for draw in range(draws if rounding == "stochastic" else 1):
            saving = Saving(memory, trained, draw)
            if limits == "running":  # ten other batches before, as in training
                for number in range(10):
                    gradient(trained, saving, *examples(data, range((number + 1) * size, (number + 2) * size)))
            found.append(gradient(trained, saving, x, y, 11))
        off = statistics.mean(float((one - exact).norm() / exact.norm()) for one in found)
        cosine = statistics.mean(float(functional.cosine_similarity(one, exact, dim=0)) for one in found)
        mean = float((torch.stack(found).mean(0) - exact).norm() / exact.norm())
        told = f"{mean:.2%}" if len(found) > 1 else ""
        yield f"| {groups} | {limits} | {rounding} | {off:.2%} | {cosine:.5f} | {told} |"


def gradient(model: nn.Module, saving: Saving, x: Tensor, y: Tensor, number: int = 1) -> Tensor:
    step(model, saving, number, x, y)
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


# ------------------------------------------------------------------------------------------------------- curves


def examples(data: Dataset, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    taken = [row % len(data.train_y) for row in rows]
    return to_tensor(data.train_x[taken], data, torch.float32), to_labels(data.train_y[taken])


def train(
    data: Dataset, memory: dict[str, Any] | None, seed: int, steps: int, size: int
) -> tuple[list[float], nn.Module]:
    """Return the losses, and the model."""
    patch = 4 if data.input_shape[1] == 32 else 2
    section = {"name": "vit", "patch": patch, "depth": 4, "width": 48, "heads": 3, "attention": "plain"}
    model = models.build(section, input_shape=data.input_shape, num_classes=10, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    saving, losses = Saving(memory, model, seed), []
    order = torch.randperm(len(data.train_y), generator=torch.Generator().manual_seed(seed)).tolist()
    for number in range(steps):
        x, y = examples(data, [order[row % len(order)] for row in range(number * size, (number + 1) * size)])
        losses.append(step(model, saving, number + 1, x, y))
        optimizer.step()
    return losses, model


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset) -> float:
    x, y = to_tensor(data.test_x[:2000], data, torch.float32), to_labels(data.test_y[:2000])
    return float((torch.cat([model(part) for part in x.split(250)]).argmax(1) == y).float().mean())


def curve_rows(data: Dataset, steps: int, size: int, seeds: Sequence[int]) -> Iterator[str]:
    marks = [number for number in (10, 50, 100, 200, 300, 500) if number <= steps]
    yield f"| side | {' | '.join(f'loss to step {mark}' for mark in marks)} | test accuracy |"
    yield "|---|" + "---:|" * (len(marks) + 1)
    for side in ("as they are", "int8", "int8, own range", "int8, nearest"):
        runs = [train(data, SIDES[side], seed, steps, size) for seed in seeds]
        told = [
            _spread([statistics.mean(losses[max(0, mark - 10) : mark]) for losses, _ in runs], ".3f") for mark in marks
        ]
        yield f"| {side} | {' | '.join(told)} | {_spread([accuracy(model, data) for _, model in runs], '.1%')} |"


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.mean(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def dataset() -> Dataset:
    try:
        return load({"name": "cifar-10-jpeg"}, seed=0)
    except DataError as error:
        print(f"digits in place of CIFAR-10: {error.message}")
        return load({"name": "digits"}, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=["memory", "time", "errors", "curves"])
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.one:
        print(one(*json.loads(asked.one)))
        return
    data = dataset() if {"errors", "curves"} & set(asked.tables) else None
    for table in asked.tables:
        rows: Iterator[str]
        if table == "memory":
            rows = memory_rows(asked.batches)
        elif table == "time":
            rows = time_rows(32, asked.rounds)
        elif table == "errors":
            assert data is not None
            rows = error_rows(data, train(data, None, 0, min(100, asked.steps), 32)[1], 32, 16)
        else:
            assert data is not None
            rows = curve_rows(data, asked.steps, 32, asked.seeds)
        print(f"\n{table}")
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
