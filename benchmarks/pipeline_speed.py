"""Pipelines of two single-thread processes: ours, torch.distributed.pipelining, one process alone, and the limit.

All sides have the same weights, batches, cut and loss, and make the same step: forward and backward of one batch in M
micro-batches, then plain SGD. They alternate in one process group in segments of some steps; a step's seconds are those
from one barrier to the next over the number of steps. Ours is `Rank.step` as it is, with its sum of loss and stop
flag over all ranks; theirs reads the loss on the last rank, and is told not to collect outputs.

    single      the whole batch at once in one process, the other one idle
    ceiling     both processes run forward and backward of their own stage's micro-batches side by side and exchange
                nothing; that time is multiplied by (M+K-1)/M, the time of an update added. No GPipe can be faster.
    ceiling *   the same, but all forwards before all backwards, as GPipe must: its larger memory costs time too
    busy        the ceiling without its factor: no process ever waits. No schedule of any kind can be faster.

Ratios are of throughput, ours over the other, so that more than 1 is faster: the median over segments, with the least
and the most. Before anything is timed, all gradients are compared with those of the single process.

    python -m benchmarks.pipeline_speed [--model transformer|mlp] [--segments 5] [--steps 2]
    python -m benchmarks.pipeline_speed --try       which schedules of torch.distributed.pipelining run here at all
    python -m benchmarks.pipeline_speed --ray       the same stages in a gang on Ray and in plain processes
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.pipeline_sides import OURS, STAGES, THEIRS, Side, Single, Theirs, build, compare, spread
from benchmarks.workloads import MLP, TRANSFORMER, Deep, Plain, in_processes
from strategies.pipeline import chunks_of, schedule, simulate, uniform
from trainers import models, modules, wire
from trainers.data.base import Dataset
from trainers.pipeline import program


def measure(
    rank: int, send: Callable[[Any], None], deep: Deep, names: list[str], counts: list[int], segments: int, steps: int
) -> None:
    """Run all sides by turns; rank 0 sends `("cannot" | "gradients" | "seconds", ...)`."""
    data = deep.dataset()
    for microbatches in counts:
        sides: dict[str, Side] = {}
        for name in names:
            try:
                sides[name] = build(rank, name, deep, microbatches, data)
            except ValueError as error:
                if rank == 0:
                    send(("cannot", microbatches, name, str(error).splitlines()[0]))
        reference = next((side for side in sides.values() if isinstance(side, Single)), None)
        worst = compare(rank, sides, reference or Single(rank, deep.settings(STAGES, "gpipe", 1), data))
        for side in sides.values():
            side.seconds(1)
        if rank == 0:
            send(("gradients", microbatches, worst))
        for segment in range(segments):
            order = list(sides) if segment % 2 == 0 else list(sides)[::-1]
            seconds = {name: sides[name].seconds(steps) for name in order}
            if rank == 0:
                send(("seconds", microbatches, seconds))


def shortest(microbatches: int) -> float:
    """Return the makespan of the shortest of our schedules over a stage's work, where F, B and W cost the same."""
    lengths = []
    for name in OURS:
        chunks = chunks_of(name, 2)
        costs = uniform(STAGES * chunks, *[Fraction(1, chunks)] * 3)
        lengths.append(simulate(schedule(name, STAGES, microbatches, chunks), costs).makespan_s)
    return float(min(lengths) / (3 * microbatches))


def table(deep: Deep, microbatches: int, rows: list[dict[str, float]]) -> Iterator[str]:
    """Write what was measured for one number of micro-batches."""
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    yield f"\n{deep}, K = {STAGES}, M = {microbatches}, {len(rows)} segments"
    yield f"  {'side':<28}{'s / step':>10}  throughput of ours gpipe over it"
    for name, seconds in median.items():
        over = spread([row[name] / row["ours gpipe"] for row in rows]) if "ours gpipe" in median else ""
        yield f"  {name:<28}{seconds:>10.4f}  {over}"
    best = {kind: [n for n in median if n.startswith(kind + " ")] for kind in ("ours", "torch")}
    if all(best.values()):
        ours, theirs = (min(found, key=median.__getitem__) for found in best.values())
        ratio = spread([row[theirs] / row[ours] for row in rows])
        yield f"  best of ours ({ours[5:]}) over the best of theirs ({theirs[6:]}): {ratio}"
        if "busy" in median:
            most, least = [row[theirs] / row["busy"] for row in rows], shortest(microbatches)
            yield f"  the most over the best of theirs, if no process ever waited: {spread(most)}"
            most = [one / least for one in most]
            yield f"  the most in the shortest of our schedules, {least:.3f} times as long: {spread(most)}"


def speed(deep: Deep, names: list[str], arguments: argparse.Namespace) -> None:
    """Print one table for each number of micro-batches, and a summary."""
    seen: dict[int, list[dict[str, float]]] = {}
    counts = arguments.microbatches
    given = (deep, names, counts, arguments.segments, arguments.steps)
    for kind, microbatches, *rest in in_processes(measure, STAGES, *given):
        if kind == "cannot":
            print(f"M = {microbatches}: {rest[0]} cannot: {rest[1]}", flush=True)
        elif kind == "gradients":
            name, most = max(rest[0].items(), key=lambda item: item[1], default=("nobody", 0.0))
            print(f"M = {microbatches}: gradients differ from the single process's by {most:.1e} at most ({name})")
        else:
            rows = seen.setdefault(microbatches, [])
            rows.append(rest[0])
            if len(rows) == arguments.segments:
                print("\n".join(table(deep, microbatches, rows)), flush=True)


def try_one(rank: int, send: Callable[[Any], None], deep: Deep, name: str, microbatches: int) -> None:
    """Make two steps of a schedule and compare the first."""
    data = deep.dataset()
    side = Theirs(rank, name, deep, microbatches, data)
    worst = compare(rank, {name: side}, Single(rank, deep.settings(STAGES, "gpipe", 1), data))
    side.seconds(1)
    if rank == 0:
        send(worst[name])


def try_all(deep: Deep, counts: list[int]) -> None:
    """Print which of torch's schedules run, each in processes of its own."""
    for name in THEIRS:
        for microbatches in counts:
            try:
                (worst,) = in_processes(try_one, STAGES, deep, name, microbatches)
                said = f"runs, gradients within {worst:.1e}"
            except Exception as error:  # whatever a rank raised, with its traceback in the text
                said = str(error).strip().splitlines()[-1]
            print(f"{name:<24} M = {microbatches:<3} {said}", flush=True)


# ------------------------------------------------------------------------------------------------------------ Ray


class Timed:
    """A gang's context that notes when each step was reported, and at the end reports that."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.times = inner, list[float]()
        self.rank, self.world_size, self.device = inner.rank, inner.world_size, inner.device

    def report(self, payload: Any) -> str:
        if payload["kind"] == "step":
            self.times.append(time.perf_counter())
        return str(self.inner.report(payload))


def timed(context: Any, *, settings: Mapping[str, Any], dataset: Dataset, start: Mapping[str, Any]) -> None:
    """Run `trainers.pipeline.program` whole, with a report every step, and report the seconds between steps."""
    clock, never = Timed(context), 1_000_000
    plain = {"begin": 0, "evaluate_every": never, "evaluate_batch": 2, "checkpoint_every": never}
    program.run(clock, settings=settings, dataset=dataset, start=start, **plain)
    if clock.times:
        gaps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
        context.report({"kind": "gaps", "seconds": gaps})


class Sent(Plain):
    """A plain process's context that passes on only the last word."""

    send: Callable[[Any], None]

    def report(self, payload: Any) -> str:
        if payload["kind"] == "gaps":
            self.send(payload["seconds"])
        return ""


def timed_plainly(rank: int, send: Callable[[Any], None], arguments: Mapping[str, Any]) -> None:
    """Run the same in a process that this benchmark started."""
    context = Sent(rank, STAGES)
    context.send = send
    timed(context, **arguments)


def ray(deep: Deep, microbatches: int, segments: int, steps: int) -> None:
    """Print seconds per step of a gang over those of plain processes."""
    from cluster.connect import connect
    from cluster.gang import Gang

    settings = deep.settings(STAGES, "gpipe", microbatches, steps=steps)
    data = deep.dataset()
    model = models.build(
        settings.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=settings.model_seed
    )
    start = {"model": wire.encode(modules.snapshot(model)).to_pybytes()}
    root, ratios = str(Path(__file__).parents[1]), []
    with connect("local", min_cpus=STAGES, log_to_driver=False), Gang(STAGES, {"CPU": 1}, paths=[root]) as gang:
        given = {"settings": settings._asdict(), "dataset": data, "start": start}
        shared = {**given, "dataset": gang.share(data), "start": {name: gang.share(x) for name, x in start.items()}}
        for segment in range(segments):
            reports = [one.payload for one in gang.run("benchmarks.pipeline_speed:timed", shared) if one]
            (ours,) = (payload["seconds"] for payload in reports if payload["kind"] == "gaps")
            (plain,) = in_processes(timed_plainly, STAGES, given)
            # The first step makes buffers, and there is no gap before it.
            gang_s, plain_s = statistics.median(ours), statistics.median(plain)
            ratios.append(gang_s / plain_s)
            print(f"segment {segment}: gang {gang_s:.4f} s/step, plain {plain_s:.4f}, {ratios[-1]:.4f}", flush=True)
    print(f"{deep}, M = {microbatches}: gang over plain processes, s/step: {spread(ratios)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["transformer", "mlp"], default="transformer")
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each side in a segment")
    parser.add_argument("--sides", nargs="+", help="default all; 'ours gpipe', 'torch GPipe', single, 'ceiling *', ...")
    for name in ("layers", "width", "batch", "length"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--try", dest="tries", action="store_true")
    parser.add_argument("--ray", action="store_true")
    arguments = parser.parse_args()
    changes = {name: getattr(arguments, name) for name in ("layers", "width", "batch", "length")}
    deep = (MLP if arguments.model == "mlp" else TRANSFORMER)._replace(**{n: v for n, v in changes.items() if v})
    names = [*(f"ours {n}" for n in OURS), *(f"torch {n}" for n in THEIRS), "single", "ceiling", "ceiling *", "busy"]
    if arguments.tries:
        try_all(deep._replace(layers=4, width=32, batch=16, length=min(deep.length, 16)), arguments.microbatches)
    elif arguments.ray:
        for microbatches in arguments.microbatches:
            ray(deep, microbatches, arguments.segments, arguments.steps)
    else:
        speed(deep, arguments.sides or names, arguments)


if __name__ == "__main__":
    main()
