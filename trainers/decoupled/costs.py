"""What each module of a rule costs: measured once, in one process, on a batch of the experiment's size."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from strategies.local import LocalModule, serial
from strategies.local.base import drawing
from strategies.local.memory import Packing, Saved, backward_bytes
from trainers import optimizers
from trainers.activations import Saver
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.decoupled.links import num_bytes, two_examples
from trainers.decoupled.settings import Built, Settings
from trainers.threads import intra_op_threads

_REPEATS = 2
"""The first time warms up; the fastest of the others counts."""


class ModuleCost(NamedTuple):
    """One module, and one batch of it.

    Args:
        units: names of the model's tensors that it has. num_parameters: of the model. num_auxiliary: besides.
        forward_s, learn_s: seconds until its carry can be sent, and of learning, its optimizer's steps included.
        saved_bytes: most that autograd keeps. sent_bytes: of its carry. test_bytes: of its carries in an evaluation, of
            all test examples together.
    """

    names: tuple[str, ...]
    num_parameters: int
    num_auxiliary: int
    forward_s: float
    learn_s: float
    saved_bytes: int
    sent_bytes: int
    test_bytes: int


def measure(built: Built, settings: Settings, dataset: Dataset, threads: int) -> list[ModuleCost]:
    """Return the cost of each module. The modules are trained a little: they are of no use afterwards.

    Raises:
        ValueError: when a module refuses what it is given.
    """
    rows = settings.order(len(dataset.train_y)).batch(0)
    x = to_tensor(dataset.train_x[rows], dataset, getattr(torch, settings.model["dtype"]))
    y = to_labels(dataset.train_y[rows])
    optimizers_ = [optimizers.build(settings.optimizer, module.named_parameters()) for module in built.modules]
    saver = built.saver(settings.memory, range(len(built.modules)))
    times: list[list[tuple[float, float]]] = [[] for _ in built.modules]
    saved_bytes, sent_bytes = [0] * len(built.modules), [0] * len(built.modules)
    with intra_op_threads(threads):
        for repeat in range(_REPEATS + 1):
            serial.descend(built.modules, dataset.num_classes)
            carry = built.rule.start(x, y, dataset.num_classes, 0)
            for index, module in enumerate(built.modules):
                began = time.perf_counter()
                with _saving(saver, index, repeat, carry) as packing, Saved([module], packing) as saved:
                    carry = _forward(module, carry, y, index)
                    ready = time.perf_counter()
                    serial.learn(module, optimizers_[index])
                if repeat:
                    times[index].append((ready - began, time.perf_counter() - ready))
                saved_bytes[index] = max(saved_bytes[index], saved.peak_bytes)
                sent_bytes[index] = num_bytes(carry)
    if built.rule.stream == "none":
        sent_bytes = [0] * len(built.modules)
    own, test_bytes = _own(built), _test_bytes(built, settings, dataset)
    return [
        ModuleCost(*own[index], *min(times[index], key=sum), saved_bytes[index], sent_bytes[index], test_bytes[index])
        for index in range(len(built.modules))
    ]


def _test_bytes(built: Built, settings: Settings, dataset: Dataset) -> list[int]:
    """Return the bytes of what each module hands on in an evaluation, counted on two examples."""
    x, _ = two_examples(dataset, getattr(torch, settings.model["dtype"]))
    carry, found = built.rule.start(x, None, dataset.num_classes, 0), []
    for module in built.modules:
        carry = module.infer(carry)
        found.append(num_bytes(carry) // len(x) * len(dataset.test_y))
    return found


def backpropagation_bytes(built: Built, settings: Settings, dataset: Dataset, threads: int) -> int | None:
    """Return what autograd would keep of the model for one batch of backpropagation through all of it.

    None where the model cannot be trained so: rules such as PhyLL need no layer that has a derivative.
    """
    rows = settings.order(len(dataset.train_y)).batch(0)
    x = to_tensor(dataset.train_x[rows], dataset, getattr(torch, settings.model["dtype"]))
    try:
        with intra_op_threads(threads), drawing(0):
            return backward_bytes(built.model, x, to_labels(dataset.train_y[rows]))
    except (RuntimeError, TypeError, ValueError):
        return None


@contextmanager
def _saving(saver: Saver | None, index: int, seed: int, carry: dict[str, torch.Tensor]) -> Iterator[Packing | None]:
    if saver is None:
        yield None
        return
    with saver.microbatch(0, seed), saver.layer(index, list(carry.values())) as layer:
        yield layer


def _forward(
    module: LocalModule, carry: dict[str, torch.Tensor], y: torch.Tensor, index: int
) -> dict[str, torch.Tensor]:
    try:
        return module(carry, y, index)  # type: ignore[no-any-return]
    except (RuntimeError, ValueError, IndexError) as error:
        given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in carry.items())
        raise ValueError(f"module {index} was given {given} and raised: {error}") from error


def _own(built: Built) -> Sequence[tuple[tuple[str, ...], int, int]]:
    """Return for each module names of the model's tensors, and numbers of parameters of the model and besides."""
    known = {id(parameter): name for name, parameter in built.model.named_parameters()}
    found = []
    for module in built.modules:
        names = [known[id(p)] for p in module.parameters() if id(p) in known]
        of_model = sum(p.numel() for p in module.parameters() if id(p) in known)
        besides = sum(p.numel() for p in module.parameters() if id(p) not in known)
        found.append((tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names)), of_model, besides))
    return found
