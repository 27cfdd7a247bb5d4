"""Loop or batched: by a rule that gives the same answer on every machine, or by a short measurement of this one.

The rule was set from times on one core of an EPYC 7003 (torch 2.13, float32, batches of 10, seconds of the thread,
while other processes shared the cache). Chains differentiated by hand, loop over batched:

    model                examples  optimizer   clients side by side: 1    4    12   24   48
    784-64-10                  20  SGD                            0.8  2.8  5.9  8.2  10.2
    784-200-200-10             20  SGD                            1.0  2.5  4.3  5.0   5.1
    784-200-200-10            100  SGD                            1.2  2.5  3.4  3.5   3.7
    784-1024-1024-10           20  SGD                            1.3  1.5  1.5
    784-64-10                  20  Adam                           0.9  2.7  4.4  5.1   5.2
    784-200-200-10             20  Adam                           0.9  1.7  2.0  1.7   1.5
    784-1024-1024-10           20  Adam                           1.0  0.8  0.5
    CNN 3-32-64, 32 x 32      100  SGD                            1.1

What a group's weights and the optimizer's memory of them take should fit the cache (`_CACHE_BYTES`): that is the
width. Other modules under vmap, with plain SGD:

    model                 weights  multiply-adds a step   clients side by side: 2    5    10   15   25
    one tanh layer         50,890                 1 M                         0.6  1.3  2.2  2.8  3.1
    two tanh layers       199,210                 2 M                         0.6  1.1  1.3       0.8
    three tanh layers   3,159,050                32 M                         0.9  0.5  0.3       0.3
    two, batches of 100   199,210                20 M                         0.7  0.6       0.8
    resnet-8, width 8      19,218                15 M                              1.4       2.1
    transformer, width 32  30,272                 2 M                         0.6  1.3       2.2
    transformer, width 64 113,536                90 M                         0.8  0.9       0.9

so vmap is taken for at least `_MIN_CLIENTS` side by side, at up to `_MAX_WORK` multiply-adds of the forward pass a
step; it keeps gradients and copies too, and its width is smaller. On a GPU launches cost what arithmetic does not,
and batched is always taken; that half of the rule is reasoned, not measured.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainers import modules, optimizers
from trainers.batched.chain import Convolution, Link, parse
from trainers.batched.refusing import refusal
from trainers.data.base import Dataset, to_tensor
from trainers.local import LocalSettings, Task, train

if TYPE_CHECKING:
    from trainers.batched.block import Block

_MIN_CLIENTS = 5
_CACHE_BYTES = 32 << 20
_DEVICE_BYTES = 4 << 30
_VMAP_COPIES = 3
_MAX_WORK = 18_000_000


class Choice(NamedTuple):
    """How clients are trained, and why in a sentence for the log.

    Args:
        loop_s, batched_s: seconds that the measurement took a block, where there was one.
    """

    kind: Literal["loop", "batched"]
    reason: str
    loop_s: float | None = None
    batched_s: float | None = None


def choose(model: nn.Module, settings: LocalSettings, dataset: Dataset, sizes: Sequence[int], block: int) -> Choice:
    """Choose by the rule; the same arguments give the same answer everywhere.

    Args:
        sizes: examples of each client. block: clients that are trained together.
    """
    why = refusal(model, settings, dataset)
    if why:
        return Choice("loop", why)
    links = parse(model, dataset.input_shape)
    width = group_width(model, settings, links)
    together = min(block, width)
    if next(model.parameters()).is_cuda:
        return Choice("batched", f"{together} clients side by side on a GPU")
    if links is not None:
        if together > 1 or any(isinstance(link, Convolution) for link in links):
            return Choice("batched", f"a chain of known layers, {together} clients side by side")
        return Choice("loop", f"one client at a time: blocks of {block}, and {width} fit the cache")
    if together < _MIN_CLIENTS:
        return Choice("loop", f"{together} clients fit side by side, and torch.func pays from {_MIN_CLIENTS}")
    typical = int(np.median(sizes))
    work = _work(model, dataset, min(settings.batch_size or typical, typical))
    if work > _MAX_WORK:
        return Choice("loop", f"{work} multiply-adds a step, and torch.func pays up to {_MAX_WORK}")
    return Choice("batched", f"torch.func, {together} clients side by side")


def group_width(model: nn.Module, settings: LocalSettings, links: Sequence[Link] | None) -> int:
    """Return the most clients that are trained side by side, at least 1.

    Args:
        links: of `chain.parse`; `None` when the model is no chain and goes through torch.func.
    """
    own = list(modules.tensors(model).values())
    on_cpu = own[0].device.type == "cpu"
    if on_cpu and links is not None and any(isinstance(link, Convolution) for link in links):
        return 1
    copies = 1 + optimizers.copies(settings.optimizer, own[0].dtype) + (_VMAP_COPIES if links is None else 0)
    each = copies * sum(tensor.numel() * tensor.element_size() for tensor in own)
    return max(1, int((_CACHE_BYTES if on_cpu else _DEVICE_BYTES) // each))


def measure(
    model: nn.Module,
    settings: LocalSettings,
    dataset: Dataset,
    tasks: Sequence[Task],
    block: Block,
    *,
    run_seed: int,
    repeats: int = 3,
) -> Choice:
    """Choose by training one block both ways, in alternation; what is chosen depends on this machine.

    The median of the paired ratios decides. The model is copied.

    Args:
        tasks, block: clients of the run, as many as are trained together.
    """
    from trainers.batched import Batched

    why = refusal(model, settings, dataset)
    if why:
        return Choice("loop", why)
    copied = copy.deepcopy(model)
    batched = Batched(copied, settings, dataset.input_shape)
    seconds: dict[str, list[float]] = {"loop": [], "batched": []}
    for _ in range(repeats + 1):  # the first of each pays for cold caches and does not count
        began = time.perf_counter()
        for task, (x, y), chosen in zip(tasks, block.parts(), block.chosen or [None] * len(tasks), strict=True):
            train(copied, task, x, y, settings, run_seed=run_seed, chosen=chosen)
        between = time.perf_counter()
        stacked = batched.train(tasks, block, run_seed=run_seed)
        stacked.weighted_sum([1.0] * len(tasks))
        seconds["batched"].append(time.perf_counter() - between)
        seconds["loop"].append(between - began)
    pairs = list(zip(seconds["loop"][1:], seconds["batched"][1:], strict=True))
    ratio = statistics.median(loop / batched for loop, batched in pairs)
    kind: Literal["loop", "batched"] = "batched" if ratio > 1 else "loop"
    loop_s, batched_s = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    said = f"measured on {len(tasks)} clients: loop {loop_s:.4f} s, batched {batched_s:.4f} s"
    return Choice(kind, said, loop_s, batched_s)


@torch.no_grad()
def _work(model: nn.Module, dataset: Dataset, batch: int) -> int:
    """Return the multiply-adds of a forward pass over a batch."""
    parameter = next(model.parameters())
    rows = dataset.train_x[: min(batch, len(dataset.train_x), 4)]
    x = to_tensor(rows, dataset, parameter.dtype).to(parameter.device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            model(x)
    finally:
        for module in training:
            module.training = True
    return counter.get_total_flops() * batch // (2 * len(rows))
