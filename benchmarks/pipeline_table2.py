"""Table 2 of the GPipe paper: throughput over stages K and micro-batches M, simulated from measured layers.

Each layer of a transformer is measured forward and backward on one thread, for each size of micro-batch; stages are cut
by these times (`balance`), and a schedule is run on paper (`simulate`), with recomputation, as in the paper, and not:
GPipe's, and `zero-bubble-v`, which the paper did not have, with half of a backward for the weights. Transfers are free
unless a bandwidth is given; so is the update, and cores are not shared: these figures are SIMULATED, they say what the
schedule and the cut allow. K = 2 is also measured, in two processes of one thread each.

Throughput is that of GPipe with K = 2, M = 1 times the figure. `ideal` is KM/(M+K-1) over its value there. The paper's
own M = 4 exceeds it for K = 4 and 8, since its batches were made larger where memory allowed.

Source: Huang et al. 2019 (arXiv:1811.06965), Table 2, Transformer-48 on TPUs.

    python -m benchmarks.pipeline_table2 [--layers 16] [--bandwidth 2e9] [--no-measured]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.pipeline_sides import STAGES, Ours, spread
from benchmarks.workloads import TRANSFORMER, Deep, in_processes
from strategies.pipeline import Costs, balance, chunks_of, schedule, simulate, splits_backward
from trainers import models
from trainers.pipeline.costs import LayerCost, measure
from trainers.pipeline.settings import Settings

PAPER = {
    (1, 2): 1.0, (1, 4): 1.07, (1, 8): 1.3,
    (4, 2): 1.7, (4, 4): 3.2, (4, 8): 4.8,
    (32, 2): 1.8, (32, 4): 3.4, (32, 8): 6.3,
}  # fmt: skip
COUNTS, STAGE_COUNTS = (1, 4, 32), (2, 4, 8)
MODES = ("always", "never")
SCHEDULES = ("gpipe", "zero-bubble-v")


def measured_layers(deep: Deep, repeats: int) -> dict[int, list[LayerCost]]:
    """Return the costs of each layer for each number of micro-batches."""
    data, settings = deep.dataset(batches=1), deep.settings(1, "gpipe", 1)
    model = models.build(settings.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=1)
    common = {"dtype": torch.float32, "loss": settings.loss, "repeats": repeats}
    return {count: measure(model, data, size=deep.batch // count, **common) for count in COUNTS}


def cut(costs: Sequence[LayerCost], positions: int, mode: str) -> tuple[int, ...]:
    """Return the number of layers of each position."""
    again = mode == "always"
    return tuple(balance([(1 + again) * cost.forward_s + cost.backward_s for cost in costs], positions))


def simulated_s(
    costs: Sequence[LayerCost], name: str, stages: int, microbatches: int, mode: str, bandwidth: float
) -> float:
    """Return the seconds of a step on paper."""
    own, start = list[Sequence[LayerCost]](), 0
    chunks, split = chunks_of(name, 2), splits_backward(name)
    for count in cut(costs, stages * chunks, mode):
        own.append(costs[start : start + count])
        start += count
    forward_s = [sum(cost.forward_s for cost in part) for part in own]
    found = simulate(
        schedule(name, stages, microbatches, chunks),
        Costs(
            forward_s=forward_s,
            backward_s=[sum(cost.backward_s for cost in part) / (1 + split) for part in own],
            weight_s=[sum(cost.backward_s for cost in part) / 2 for part in own] if split else (),
            transfer_s=[part[0].input_bytes / bandwidth for part in own[1:]],
            recompute_s=forward_s if mode == "always" else (),
        ),
    )
    return float(found.makespan_s)


def run(
    rank: int,
    send: Callable[[Any], None],
    deep: Deep,
    given: dict[tuple[str, int], Settings],
    segments: int,
    steps: int,
) -> None:
    """Measure our schedules for each number of micro-batches, by turns; rank 0 sends seconds by both."""
    data = deep.dataset()
    sides = {which: Ours(rank, settings, data) for which, settings in given.items()}
    for side in sides.values():
        side.seconds(1)
    for _ in range(segments):
        seconds = {which: side.seconds(steps) for which, side in sides.items()}
        if rank == 0:
            send(seconds)


def table(deep: Deep, simulated: dict[tuple[int, int], float], base_s: float, name: str, mode: str) -> Iterator[str]:
    yield f"\nSIMULATED from measured layers, {deep}, {name}, recomputation: {mode}"
    yield f"  {'':<8}" + "".join(f"{f'K = {stages}: here':>15}{'paper':>7}{'ideal':>7}" for stages in STAGE_COUNTS)
    for count in COUNTS:
        line = f"  M = {count:<4}"
        for stages in STAGE_COUNTS:
            throughput = base_s / simulated[count, stages]
            ideal = stages * count / (count + stages - 1)
            line += f"{throughput:>15.2f}{PAPER[count, stages]:>7.2f}{ideal:>7.2f}"
        yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="of each layer; the fastest counts")
    parser.add_argument("--bandwidth", type=float, default=float("inf"), help="bytes a second between stages")
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each M in a segment")
    parser.add_argument("--no-measured", action="store_true")
    for name in ("layers", "width", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(TRANSFORMER, name))
    arguments = parser.parse_args()
    deep = TRANSFORMER._replace(**{name: getattr(arguments, name) for name in ("layers", "width", "batch", "length")})
    if deep.batch % max(COUNTS):
        parser.error(f"--batch must be a multiple of {max(COUNTS)}, got {deep.batch}")
    costs = measured_layers(deep, arguments.repeats)
    whole = {count: count * sum(cost.forward_s + cost.backward_s for cost in found) for count, found in costs.items()}
    print("seconds of a batch in one process: " + ", ".join(f"{s:.3f} at M = {count}" for count, s in whole.items()))
    for mode in MODES:
        base_s = simulated_s(costs[1], "gpipe", 2, 1, mode, arguments.bandwidth)
        for name in SCHEDULES:
            found = {
                (count, stages): simulated_s(costs[count], name, stages, count, mode, arguments.bandwidth)
                for count in COUNTS
                for stages in STAGE_COUNTS
            }
            print("\n".join(table(deep, found, base_s, name, mode)), flush=True)
    if arguments.no_measured:
        return
    for mode in MODES:
        given = {}
        for name in SCHEDULES:
            for count in COUNTS:
                layers = cut(costs[count], STAGES * chunks_of(name, 2), mode)
                given[name, count] = deep.settings(STAGES, name, count, layers=layers, recompute=(mode,) * 2)
        rows = list(in_processes(run, STAGES, deep, given, arguments.segments, arguments.steps))
        print(f"\nmeasured, K = {STAGES}, recomputation: {mode}, {len(rows)} segments")
        for name, count in given:
            seconds = statistics.median(row[name, count] for row in rows)
            ratio = spread([row["gpipe", 1] / row[name, count] for row in rows])
            of_paper = f"   paper {PAPER[count, STAGES]:.2f}" if name == "gpipe" else ""
            print(f"  {name:<14} M = {count:<4}{seconds:>9.4f} s / step  throughput {ratio}{of_paper}")


if __name__ == "__main__":
    main()
