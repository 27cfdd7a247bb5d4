"""What a pipeline keeps of its micro-batches, counted, predicted and by GPipe's formula; the largest model that fits.

Counted is, for each stage of a real step, the memory of all that autograd saved for backward and of what the runtime
keeps of each micro-batch (its input and, where nothing is recomputed, its output): each block of memory once, from
when it is kept until it is freed. Weights, gradients and what an operation needs only while it runs are left out.

The formula is O(N + (L/K)(N/M)) of Huang et al. 2019 (arXiv:1811.06965), section 2.3, with its constants written out:
N times the bytes of an example at a cut, and N/M times those that the L/K layers of a stage save of it, both counted on
one layer alone. Without recomputation it is N + (L/K) N.

The second table is the paper's Table 1 at our scale: weights, gradients, the optimizer's memory and activations have to
fit a fixed number of bytes a stage. The number of layers is worked out from what one layer was counted to take, and
checked by counting a pipeline of that many layers, and one of a layer more on each stage. Its activations are those of
the fullest stage times the number of stages.

    python -m benchmarks.pipeline_memory [--layers 16] [--cap-mib 64]
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.workloads import Deep
from strategies.pipeline import Costs, schedule, simulate
from trainers import models, optimizers
from trainers.data import to_labels, to_tensor
from trainers.local import loss_of
from trainers.pipeline.chunk import Carry, Chunk, Run
from trainers.pipeline.costs import LayerCost, measure
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.layers import chain
from trainers.pipeline.settings import Settings

DEEP = Deep("transformer", 16, 128, 32, 64)
MODES = ("never", "except-last", "always")
PAPER = {"Naive-1": 3, "Pipe-1": 13, "Pipe-8": 103, "Pipe-32": 415}
"""Layers in the paper's Table 1: a transformer of width 2048 on TPUs of 16 GB, sequences of 1024, batch 32."""

MIB = 2**20


class Counter:
    """Bytes of memory blocks that are kept, each once, and the most there were."""

    def __init__(self, left_out: Sequence[Tensor] = ()) -> None:
        self._left_out = {tensor.untyped_storage().data_ptr() for tensor in left_out}
        self._kept: set[int] = set()
        self.now = self.peak = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor's memory until it is freed."""
        storage = tensor.untyped_storage()
        where, size = storage.data_ptr(), storage.nbytes()
        if where not in self._left_out and where not in self._kept:
            self._kept.add(where)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, where, size)
        return tensor

    def _freed(self, where: int, size: int) -> None:
        self._kept.discard(where)
        self.now -= size

    def counting(self) -> saved_tensors_hooks:
        """Count what autograd saves inside the `with` block."""
        return saved_tensors_hooks(self.keep, lambda tensor: tensor)


def watch(chunk: Chunk, counter: Counter) -> None:
    """Count what a chunk keeps, from now on."""
    forward, recompute = chunk.forward, chunk.recompute

    def counted(run: Run, carry: Carry, targets: Tensor | None = None, weight: float = 1.0) -> Carry:
        for tensor in carry.values():
            counter.keep(tensor)
        with counter.counting():
            outputs = forward(run, carry, targets, weight)
        if run.keep and not chunk.is_last:
            for tensor in outputs.values():
                counter.keep(tensor)
        return outputs

    def counted_again(microbatch: int) -> None:
        with counter.counting():
            recompute(microbatch)

    chunk.forward, chunk.recompute = counted, counted_again  # type: ignore[method-assign]


def counted(deep: Deep, settings: Settings) -> tuple[list[int], list[int]]:
    """Return each stage's most bytes of activations in a step, and its bytes of weights, gradients and optimizer."""
    pipeline = InlinePipeline(settings, deep.dataset(batches=1))
    pipeline.step(1)  # agrees on boundaries, which takes a dry micro-batch
    counters = []
    for rank in pipeline.ranks:
        counter = Counter([parameter for _, parameter in rank.part.own])
        for chunk in rank.chunks:
            watch(chunk, counter)
        counters.append(counter)
    pipeline.step(2)
    left = [counter.now for counter in counters]
    assert max(left) <= 64, f"{left} bytes are kept after the step"
    fixed = [sum(map(_bytes, _fixed(rank))) for rank in pipeline.ranks]
    return [counter.peak for counter in counters], fixed


def _fixed(rank: Any) -> Iterator[Tensor]:
    for _, parameter in rank.part.own:
        yield parameter
        assert parameter.grad is not None
        yield parameter.grad
        held = rank.update.optimizer.state.get(parameter, {}).values()
        yield from (value for value in held if isinstance(value, Tensor) and value.dim())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


class Unit(NamedTuple):
    """What is counted on the model's parts alone, in bytes.

    Args:
        cut: of an example between two layers. first, layer, last: saved of an example by what is before the equal
            layers, by one of them, and by what is behind, each with its own input.
        first_weights, layer_weights, last_weights: of the parameters.
    """

    cut: float
    first: float
    layer: float
    last: float
    first_weights: int
    layer_weights: int
    last_weights: int


def unit(deep: Deep, size: int) -> Unit:
    """Count one layer, and the model's ends, for micro-batches of `size` examples."""
    small = deep._replace(layers=1, batch=size)
    data, settings = small.dataset(batches=1), small.settings(1, "gpipe", 1)
    model = models.build(settings.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=1)
    links: list[nn.Module] = [link.module for link in chain(model).layers]
    parts = [links[:1], links[1:-1], links[-1:]]
    value, saved, cut = to_tensor(data.train_x, data, torch.float32), list[float](), 0.0
    for place, part in enumerate(parts):
        module = nn.Sequential(*part)
        counter = Counter(list(module.parameters()))
        value = value.detach()
        if value.is_floating_point():
            value.requires_grad_()
        counter.keep(value)
        with counter.counting():
            out = module(value)
            kept = loss_of(out, to_labels(data.train_y)) if place == 2 else out
        saved.append(counter.now / size)
        if place == 1:
            cut = _bytes(value) / size
        del kept
        value = out
    weights = [sum(_bytes(p) for link in part for p in link.parameters()) for part in parts]
    return Unit(cut, *saved, *weights)


def formula(deep: Deep, one: Unit, stages: int, microbatches: int, mode: str) -> float:
    """Return the formula's bytes of the fullest stage that has equal layers only."""
    size = -(-deep.batch // microbatches)
    own = -(-deep.layers // stages)
    inner = own * one.layer - one.cut  # a stage's input is in the first term
    if mode == "never":
        return deep.batch * (one.cut + inner)
    return deep.batch * one.cut + size * inner


def simulated(settings: Settings, costs: Sequence[LayerCost], mode: str, microbatches: int) -> list[float]:
    """Return the simulator's bytes of each stage, as `orchestrator plan` has them."""
    own, start = [], 0
    for count in settings.layers:
        own.append(costs[start : start + count])
        start += count
    again = mode != "never"
    found = simulate(
        schedule(settings.schedule, settings.stages, microbatches, settings.chunks),
        Costs(
            forward_s=[1.0] * len(own),
            backward_s=[1.0] * len(own),
            weight_s=[1.0] * len(own) if settings.splits_backward else (),
            recompute_s=[1.0] * len(own) if again else (),
            not_recomputed=(microbatches - 1,) if mode == "except-last" else (),
            activation_bytes=[
                sum(c.activation_bytes for c in part) + part[0].input_bytes - part[0].own_input_bytes for part in own
            ],
            boundary_bytes=[part[0].input_bytes - part[0].own_input_bytes for part in own],
        ),
    )
    return list(found.peak_bytes)


def activations(deep: Deep, name: str, stage_counts: Sequence[int], counts: Sequence[int]) -> Iterator[str]:
    """Count every combination; yield the table's lines."""
    yield f"activations of the fullest stage, {deep}, {name}, MiB"
    yield (
        f"{'K':>3}{'M':>4}  {'recompute':<12}{'counted':>9}{'simulated':>10}{'formula':>9}"
        "  counted / simulated (all stages)  counted / formula"
    )
    one = {size: unit(deep, size) for size in {-(-deep.batch // m) for m in counts}}
    for microbatches in counts:
        size = -(-deep.batch // microbatches)
        any_ = deep.settings(1, name, microbatches)
        data = deep.dataset(batches=1)
        model = models.build(any_.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=1)
        costs = measure(model, data, size=size, dtype=torch.float32, loss=any_.loss, repeats=1)
        for stages in stage_counts:
            for mode in MODES:
                settings = deep.settings(stages, name, microbatches, recompute=(mode,) * stages)
                peaks, _ = counted(deep, settings)
                expected = simulated(settings, costs, mode, microbatches)
                ratios = [found / wanted for found, wanted in zip(peaks, expected, strict=True)]
                by_formula = formula(deep, one[size], stages, microbatches, mode)
                # A stage from the middle has equal layers only, which is what the formula speaks of.
                middle = peaks[len(peaks) // 2] if stages > 2 else max(peaks)
                line = f"{stages:>3}{microbatches:>4}  {mode:<12}{max(peaks) / MIB:>9.2f}{max(expected) / MIB:>10.2f}"
                spread = f"  {min(ratios):>13.3f} to {max(ratios):<15.3f}"
                if name == "gpipe":
                    yield f"{line}{by_formula / MIB:>9.2f}{spread}{middle / by_formula:>9.3f}"
                else:  # the formula is GPipe's
                    yield f"{line}{'':>9}{spread}"


# ------------------------------------------------------------------------------------------------------- Table 1


def stage_bytes(deep: Deep, one: Unit, stages: int, microbatches: int, mode: str, copies: float) -> float:
    """Return what the fullest stage takes, from what was counted on the parts alone."""
    size = -(-deep.batch // microbatches)
    most = 0.0
    for stage, count in enumerate(deep.cut(stages)):
        ends = (stage == 0) + (stage == stages - 1)
        weights, saved = (count - ends) * one.layer_weights, (count - ends) * one.layer
        entry = one.cut
        if stage == 0:
            weights, saved, entry = weights + one.first_weights, saved + one.first, 8.0 * deep.length
        if stage == stages - 1:
            weights, saved = weights + one.last_weights, saved + one.last
        held = deep.batch * (saved if mode == "never" else entry) + (0 if mode == "never" else size * (saved - entry))
        most = max(most, copies * weights + held)
    return most


def largest(fits: Callable[[int], bool], least: int) -> int:
    """Return the most layers that fit, at least `least`; 0 when that does not."""
    if not fits(least):
        return 0
    low, high = least, 2 * least
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def table1(deep: Deep, cap: int, stage_counts: Sequence[int], microbatches: int, check: int) -> Iterator[str]:
    """Work out the largest models; yield the table's lines, and those of the check."""
    optimizer = {"name": "adamw", "lr": 1e-3}
    copies = 2 + optimizers.copies(optimizer, torch.float32)
    yield (
        f"largest {deep.kind} in {cap / MIB:g} MiB a stage: width {deep.width}, sequences of {deep.length}, batch "
        f"{deep.batch}, AdamW ({copies:g} times the weights); but for Naive-1 M = {microbatches}, recomputation always"
    )
    yield f"  {'':<10}{'layers':>7}{'parameters':>12}{'states MiB':>12}{'activations MiB':>17}{'over Pipe-1':>13} paper"
    whole, cut = unit(deep, deep.batch), unit(deep, -(-deep.batch // microbatches))
    rows = [("Naive-1", 1, 1, "never", whole), *((f"Pipe-{k}", k, microbatches, "always", cut) for k in stage_counts)]
    found, base = {}, 0
    for name, stages, count, mode, one in rows:

        def fits(n: int, k: int = stages, m: int = count, mode: str = mode, one: Unit = one) -> bool:
            return stage_bytes(deep._replace(layers=n), one, k, m, mode, copies) <= cap

        layers = found[name] = largest(fits, stages)
        base = layers if name == "Pipe-1" else base
        weights = one.first_weights + one.last_weights + layers * one.layer_weights
        each = stages * stage_bytes(deep._replace(layers=layers), one, stages, count, mode, 0)
        over = f"{layers / base:.2f}" if base else ""
        states = copies * weights / MIB
        paper = f"{PAPER[name]:>7} ({PAPER[name] / PAPER['Pipe-1']:.2f})" if name in PAPER else ""
        yield f"  {name:<10}{layers:>7}{weights // 4:>12,}{states:>12.1f}{each / MIB:>17.1f}{over:>13}{paper}"
    for name in ("Naive-1", f"Pipe-{check}"):
        stages = 1 if name == "Naive-1" else check
        changes: dict[str, Any] = {"optimizer": optimizer}
        if name != "Naive-1":
            changes["recompute"] = ("always",) * stages
        for more in (0, stages):
            layers = found[name] + more
            larger = deep._replace(layers=layers)
            settings = larger.settings(stages, "gpipe", 1 if name == "Naive-1" else microbatches, **changes)
            peaks, fixed = counted(larger, settings)
            most = max(peak + held for peak, held in zip(peaks, fixed, strict=True))
            verdict = "fits" if most <= cap else "does not fit"
            yield f"  counted: {name} with {layers} layers takes {most / MIB:.2f} MiB a stage at most: {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--schedules", nargs="+", default=["gpipe", "1f1b"], help="of zero-bubble, W's gradients are left out"
    )
    parser.add_argument("--cap-mib", type=float, default=64)
    parser.add_argument("--table1-stages", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--check", type=int, default=2, help="K of the pipeline that is counted, of --table1-stages")
    for name in ("layers", "width", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(DEEP, name))
    arguments = parser.parse_args()
    deep = DEEP._replace(**{name: getattr(arguments, name) for name in ("layers", "width", "batch", "length")})
    torch.set_num_threads(1)
    for name in arguments.schedules:
        for line in activations(deep, name, arguments.stages, arguments.microbatches):
            print(line, flush=True)
        print()
    cap = int(arguments.cap_mib * MIB)
    for line in table1(deep, cap, arguments.table1_stages, max(arguments.microbatches), arguments.check):
        print(line, flush=True)


if __name__ == "__main__":
    main()
