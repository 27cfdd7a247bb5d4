"""What two ranks hold at each stage of ZeRO, measured and by formula, beside torch's own; and what we cost in time.

Memory: bytes of parameters, gradients and optimizer states that a rank was seen to hold (storages, each once; gradients
after a backward that is not the last of its step as well), against `strategies.zero.memory`, and the most memory its
process ever had, beyond what it had before it built the model. Every side has processes of its own. The formulas leave
out what is gathered at a time, activations and temporaries; the peak has them all, and building the model.

Speed: seconds of a step, beside DeepSpeed's engine driven by a plain loop. The sides live side by side in the same two
processes and take turns, round by round; a ratio is theirs / ours of one round. What comes before a side, in time or
in the heap, costs it some per cent: so orders are turned and reversed from round to round, a turn's first step is not
counted, and for the second half of the rounds there are new processes, in which the sides were made in reversed order.
`--apart` gives each turn processes of its own, where memory is too small for several sides.

    python -m benchmarks.zero_memory memory --width 512        50 million parameters; 1024: 200 million
    python -m benchmarks.zero_memory speed --width 512 --sides deepspeed
    python -m benchmarks.zero_memory speed --width 1024 --sides deepspeed --stages 3 --segments 2 --apart
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.workloads import Deep, in_processes
from benchmarks.zero_sides import RANKS, SIDES, make, settings
from strategies.zero.memory import Model, Numbers, held

MB = 1e6
ACCUMULATE = 2
STAGES = (0, 1, 2, 3)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory(rank: int, send: Callable[[Any], None], name: str, stage: int, deep: Deep) -> None:
    given = settings(deep, stage, ACCUMULATE)
    if "deepspeed" in name or name == "ours":
        import deepspeed  # noqa: F401
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports what takes memory of its own
    data = deep.dataset()
    before = _peak()
    side = make(name, given, data, rank)
    for number in (1, 2):
        side.step(number)
    beyond = torch.tensor([float(_peak() - before)])
    dist.all_reduce(beyond, dist.ReduceOp.MAX)
    if rank == 0:
        send({**side.held, "peak": int(beyond), "loss": side.loss})


def memory(deep: Deep, stages: Sequence[int], names: Sequence[str]) -> None:
    """Print what each side named holds: ours at every stage given, DeepSpeed alone at stage 3."""
    print(f"{deep}, {_count(deep) / MB:.1f} M parameters, float32, AdamW, {RANKS} ranks; MB a rank")
    print(f"{'':22}{'parameters':>20}{'gradients':>20}{'optimizer':>20}{'all':>20}{'peak':>8}{'loss':>9}")
    sides = (*(("ours", stage) for stage in stages), ("deepspeed", 3), ("ddp", 0), ("fsdp2", 3))
    for name, stage in (side for side in sides if side[0] in names):
        (found,) = in_processes(_memory, RANKS, name, stage, deep)
        expected = _formula(deep, stage, name)
        cells = []
        for part in ("parameters", "gradients", "optimizer"):
            cells.append((found[part], expected[part]))
        cells.append((sum(one for one, _ in cells), sum(other for _, other in cells)))
        shown = "".join(f"{f'{one / MB:.1f} ({100 * (one / other - 1):+.1f} %)':>20}" for one, other in cells)
        title = f"{name}, stage {stage}" if name in ("ours", "deepspeed") else name
        print(f"{title:22}{shown}{found['peak'] / MB:8.0f}{found['loss']:9.4f}", flush=True)


def _count(deep: Deep) -> int:
    return sum(_sizes(deep))


def _sizes(deep: Deep) -> list[int]:
    from trainers import models

    data = deep.dataset(1)
    with torch.device("meta"):
        model = models.build(
            settings(deep, 0, 1).model, input_shape=data.input_shape, num_classes=data.num_classes, seed=1
        )
    return [parameter.numel() for parameter in model.parameters()]


def _formula(deep: Deep, stage: int, name: str) -> dict[str, int]:
    """Return the formulas' bytes; torch's sides keep no copy of the weights beside them."""
    from trainers.zero.native import PERSISTENT

    sizes = _sizes(deep)
    small = sum(size for size in sizes if size <= PERSISTENT) if name in ("ours", "deepspeed") else 0
    model = Model(sum(sizes), sum(sizes), max(sizes), small)
    found = held(model, Numbers(), ranks=RANKS, stage=stage)
    copies = 4 * -(-sum(sizes) // RANKS) if name == "fsdp2" else 0
    return {"parameters": found.parameters, "gradients": found.gradients, "optimizer": found.optimizer - copies}


def _speed(
    rank: int, send: Callable[[Any], None], names: Sequence[str], stage: int, deep: Deep, rounds: int, steps: int
) -> None:
    """Send what a step of each side took, round by round, and at last their losses."""
    data = deep.dataset()
    sides = {name: make(name, settings(deep, stage, 1), data, rank) for name in names}
    number = 0
    for round_ in range(-1, rounds):  # the first is to warm up
        order = [*names[round_ % len(names) :], *names[: round_ % len(names)]][:: -1 if round_ // len(names) % 2 else 1]
        taken = {}
        for name in order:
            sides[name].step(number + 1)
            dist.barrier()
            began = time.perf_counter()
            for step in range(2, steps + 2):
                sides[name].step(number + step)
            dist.barrier()
            taken[name] = (time.perf_counter() - began) / steps
        number += steps + 1
        if rank == 0 and round_ >= 0:
            send((taken, {name: side.loss for name, side in sides.items()}))


Round = tuple[dict[str, float], dict[str, float]]
"""By side: seconds of a step, and the loss after the last."""


def _rounds(deep: Deep, stage: int, names: Sequence[str], segments: int, steps: int, apart: bool) -> Iterator[Round]:
    """Yield what each round came to."""
    if not apart:
        for order, rounds in ((list(names), -(-segments // 2)), (list(names)[::-1], segments // 2)):
            if rounds:
                yield from in_processes(_speed, RANKS, order, stage, deep, rounds, steps)
        return
    for round_ in range(segments):
        taken: dict[str, float] = {}
        losses: dict[str, float] = {}
        for name in names[:: -1 if round_ % 2 else 1]:
            for one, loss in in_processes(_speed, RANKS, [name], stage, deep, 1, steps):
                taken, losses = taken | one, losses | loss
        yield taken, losses


def speed(deep: Deep, stages: Sequence[int], names: Sequence[str], segments: int, steps: int, apart: bool) -> None:
    """Print seconds of a step, and their ratios."""
    print(f"{deep}, {_count(deep) / MB:.1f} M parameters, {RANKS} ranks of one thread, {segments} rounds of {steps}")
    print(f"{'':30}{'s a step':>10}{'theirs / ours, median (least to most)':>42}{'loss':>10}")
    for stage in stages:
        rounds = list(_rounds(deep, stage, names, segments, steps, apart))
        for name in names:
            seconds = statistics.median(taken[name] for taken, _ in rounds)
            ratios = sorted(taken[name] / taken["ours"] for taken, _ in rounds)
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            title = f"{name}, stage {stage}" if name in ("ours", "deepspeed", "deepspeed-defaults") else name
            loss = rounds[-1][1][name]
            print(f"{title:30}{seconds:10.3f}{spread if name != 'ours' else '':>42}{loss:10.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "speed"))
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--segments", type=int, default=6, help="rounds of turns")
    parser.add_argument("--steps", type=int, default=2, help="of a turn, after one that is not counted")
    parser.add_argument("--apart", action="store_true", help="each turn in processes of its own")
    given = parser.parse_args()
    deep = Deep("transformer", given.layers, given.width, given.batch, given.length)
    if given.what == "memory":
        memory(deep, given.stages, given.sides)
    else:
        names = ["ours", *(name for name in given.sides if name != "ours")]
        speed(deep, given.stages, names, given.segments, given.steps, given.apart)


if __name__ == "__main__":
    main()
