"""What local learning keeps for backward passes, beside backpropagation, counted; and what the process then takes.

Counted is, for one batch through ResNet-32 and ResNet-110 with shortcuts of option B on images of 32 x 32, the most
memory that autograd has saved at any moment (`strategies.local.memory`): in MiB per example, without parameters,
gradients, optimizer state and what an operation needs only while it runs. The column `expected` is what was counted on
the program of AugLocal's authors (github ChenxiangMA/AugLocal); `ratio` is ours over it, and the script fails when one
is off by more than 2 %. `of BP` is the share of what backpropagation saves in the same network.

With `--rss`, each row is also trained for some steps in a process of its own, and `RSS` is how much larger the process
was at most than before the first step, in MiB: saved tensors, gradients, momentum, and what the allocator keeps. The
paper reports about 40 % less memory of a whole GPU (arXiv:2402.17318, abstract).

    python -m benchmarks.local_memory [--size 4] [--rss] [--rss-size 64]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from strategies.local import rule, train_batch, units
from strategies.local.memory import Saved, backward_bytes
from trainers.models import build

MIB = 2**20
SHAPE, CLASSES = (3, 32, 32), 10
EXPECTED: dict[tuple[int, str], float | None] = {
    (32, "bp"): 2.37, (32, "dgl"): 0.34, (32, "predsim"): None,
    (32, "auglocal 2"): 0.55, (32, "auglocal 3"): 0.67, (32, "auglocal 5"): 0.99,
    (110, "bp"): 8.07, (110, "dgl"): 0.34, (110, "predsim"): None,
    (110, "auglocal 3"): 0.67, (110, "auglocal 5"): 0.99, (110, "auglocal 6"): 1.11,
}  # fmt: skip
"""Network and rule -> MiB per example; None where nothing was counted."""


def network(depth: int) -> nn.Module:
    section = {"name": "resnet", "depth": depth, "norm": "batch", "shortcut": "convolution"}
    return build(section, input_shape=SHAPE, num_classes=CLASSES, seed=0)


def made_of(model: nn.Module, name: str) -> tuple[Any, list[Any]]:
    kind, *deep = name.split()
    made = rule(kind, **({"depth": int(deep[0])} if deep else {}))
    return made, made.modules(units(model), num_classes=CLASSES, input_shape=SHAPE, seed=0)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *SHAPE, generator=generator), torch.arange(size) % CLASSES


def counted(depth: int, name: str, size: int) -> float:
    """Return the most MiB per example that are saved for backward passes."""
    model, (x, y) = network(depth), batch(size)
    if name == "bp":
        return backward_bytes(model, x, y) / size / MIB
    made, modules = made_of(model, name)
    with Saved(modules) as saved:
        train_batch(modules, [sgd(module) for module in modules], made, x, y, 0, num_classes=CLASSES)
    return saved.peak_bytes / size / MIB


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def grown(depth: int, name: str, size: int, steps: int = 3) -> float:
    """Return by how many MiB this process grows at most in some steps."""
    model, (x, y) = network(depth), batch(size)
    if name == "bp":
        optimizer = sgd(model)
    else:
        made, modules = made_of(model, name)
        optimizers = [sgd(module) for module in modules]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for step in range(steps):
        if name == "bp":
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
        else:
            train_batch(modules, optimizers, made, x, y, step, num_classes=CLASSES)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4, help="examples of the counted batch")
    parser.add_argument("--rss", action="store_true", help="also train each row in a process of its own")
    parser.add_argument("--rss-size", type=int, default=64, help="examples of a batch there")
    parser.add_argument("--row", nargs=2, metavar=("DEPTH", "RULE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.row:
        print(grown(int(options.row[0]), options.row[1], options.rss_size))
        return 0
    print(f"torch {torch.__version__}, batch {options.size}" + f", RSS at {options.rss_size}" * options.rss)
    head = f"{'network':10} {'rule':11} {'MiB/example':>11} {'expected':>8} {'ratio':>6} {'of BP':>6}"
    print(head + "     RSS  of BP" * options.rss)
    whole: dict[int, list[float]] = {}
    off = []
    for (depth, name), expected in EXPECTED.items():
        row = [counted(depth, name, options.size)]
        if options.rss:
            command = [sys.executable, "-m", "benchmarks.local_memory", "--rss-size", str(options.rss_size)]
            done = subprocess.run([*command, "--row", str(depth), name], capture_output=True, text=True, check=True)
            row.append(float(done.stdout))
        whole.setdefault(depth, row)
        shares = [value / base for value, base in zip(row, whole[depth], strict=True)]
        told = f"{expected:8.2f} {row[0] / expected:6.3f}" if expected else f"{'-':>8} {'-':>6}"
        rest = f" {row[1]:7.0f} {shares[1]:6.1%}" if options.rss else ""
        print(f"ResNet-{depth:<3} {name:11} {row[0]:11.3f} {told} {shares[0]:6.1%}{rest}", flush=True)
        if expected and abs(row[0] / expected - 1) > 0.02:
            off.append(f"ResNet-{depth} {name}")
    if off:
        print(f"more than 2 % from what was expected: {', '.join(off)}", file=sys.stderr)
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
