"""AdamW, LAMB and LARS at growing batch sizes: what the square-root rule keeps, and what tuning again brings.

The first 10,000 training images of Fashion-MNIST, an MLP 784-200-200-10, 10 epochs whatever the batch size, so that a
batch 64 times as large makes 64 times fewer steps. The rate is tuned for each optimizer at the smallest batch, on
2,000 other training images (one seed, factors of about 3), and then grows with the square root of the batch size, as
You et al. (arXiv:1904.00962) do; it rises linearly over the first fifth of the steps and falls linearly to zero. At
the largest batch it is also tuned again, as Nado et al. (arXiv:2102.06356) ask for. Figures are the mean and range of
three seeds, right of 10,000 test images. One run is a process of one thread; times are not compared.

    ORCHESTRATOR_DATA=FOLDER python -m benchmarks.large_batch [--sizes 64 256 1024 4096] [--seeds 3] [--epochs 10]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from trainers import learning_rate, models, optimizers
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.data.registry import load
from trainers.local import loss_of
from trainers.order import Order

TRAIN, HELD_OUT = 10_000, 2_000
OPTIMIZERS: dict[str, tuple[dict[str, Any], list[float]]] = {
    "adamw": ({"weight_decay": 0.01}, [3e-4, 1e-3, 3e-3, 1e-2]),
    "lamb": ({"weight_decay": 0.01}, [1e-3, 3e-3, 1e-2, 3e-2]),
    "lars": ({"weight_decay": 1e-4, "momentum": 0.9}, [1.0, 3.0, 10.0, 30.0]),
}
"""Their arguments, and the rates that are tried at the smallest batch."""


def trained(data: Dataset, name: str, rate: float, size: int, epochs: int, seed: int) -> nn.Module:
    """Return a model after so many epochs."""
    model = models.build(
        {"name": "mlp", "hidden": [200, 200]}, input_shape=data.input_shape, num_classes=data.num_classes, seed=seed
    )
    section = {"name": name, "lr": rate, "kwargs": {}, **OPTIMIZERS[name][0]}
    optimizer = optimizers.build(section, model.named_parameters())
    steps = epochs * (TRAIN // size)
    warm_up = {"name": "linear", "warmup_steps": steps // 5, "final": 0.0}
    order = Order(seed, size, TRAIN)
    for step in range(1, steps + 1):
        rows = order.batch(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate.factor(warm_up, step, steps)
        optimizer.zero_grad()
        x = to_tensor(data.train_x[rows], data, torch.float32)
        loss_of(model(x), to_labels(data.train_y[rows])).backward()
        optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: Dataset, x: np.ndarray, y: np.ndarray) -> float:
    """Return the percentage of right ones."""
    scores = model.eval()(to_tensor(x, data, torch.float32))
    return 100 * float((scores.argmax(-1) == to_labels(y)).double().mean())


def tuned(data: Dataset, name: str, rates: Sequence[float], size: int, epochs: int) -> tuple[float, dict[float, float]]:
    """Return the rate that does best on the images held out, and what all did."""
    held_out = slice(TRAIN, TRAIN + HELD_OUT)
    found = {
        rate: accuracy(trained(data, name, rate, size, epochs, 0), data, data.train_x[held_out], data.train_y[held_out])
        for rate in rates
    }
    return max(found, key=lambda rate: found[rate]), found


def told(found: Mapping[float, float]) -> str:
    """Return what rates did, for the log."""
    return ", ".join(f"{rate:.3g}: {right:.1f}" for rate, right in found.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load({"name": "fashion-mnist"}, seed=0)
    sizes, epochs = sorted(arguments.sizes), arguments.epochs
    heads = [f"{size}" for size in sizes] + [f"{sizes[-1]}, tuned again"]
    rows = []
    for name, (_, rates) in OPTIMIZERS.items():
        base, found = tuned(data, name, rates, sizes[0], epochs)
        print(f"{name}: at batches of {sizes[0]}, held out: {told(found)}", flush=True)
        scaled = {size: base * math.sqrt(size / sizes[0]) for size in sizes}
        around = [scaled[sizes[-1]] * factor for factor in (0.1, 0.3, 1, 3, 10)]
        again, found = tuned(data, name, around, sizes[-1], epochs)
        print(f"{name}: at batches of {sizes[-1]}, held out: {told(found)}", flush=True)
        cells = []
        for size, rate in [*scaled.items(), (sizes[-1], again)]:
            right = [
                accuracy(trained(data, name, rate, size, epochs, seed), data, data.test_x, data.test_y)
                for seed in range(1, arguments.seeds + 1)
            ]
            cells.append(f"{sum(right) / len(right):.1f} ({min(right):.1f} to {max(right):.1f}), rate {rate:.3g}")
            print(f"{name}: batches of {size}: {cells[-1]}", flush=True)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    print(f"| batch | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
