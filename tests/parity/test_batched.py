"""Clients trained side by side against the loop over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from strategies.base import Correction
from strategies.seeds import generator
from trainers import models, modules
from trainers.batched import Batched, Block, choose, gather, joined, measure, refusal
from trainers.batched.chain import parse
from trainers.batched.general import General
from trainers.batched.hand import Hand
from trainers.batched.orders import generators, schedule
from trainers.data.base import Dataset
from trainers.local import LocalSettings, NotFinite, Task, batches, train
from trainers.threads import intra_op_threads

SGD = {"name": "sgd", "lr": 0.1}
OPTIMIZERS = [
    SGD,
    {"name": "sgd", "lr": 0.05, "momentum": 0.9, "kwargs": {"dampening": 0.1}},
    {"name": "sgd", "lr": 0.05, "momentum": 0.5, "weight_decay": 0.1, "kwargs": {"nesterov": True}},
    {"name": "adam", "lr": 0.01, "kwargs": {"amsgrad": True}},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
]
OTHERS = ["adamax", "nadam", "radam", "rmsprop", "adagrad", "adadelta", "rprop", "asgd"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and lose much on a busy machine."""
    with intra_op_threads(1):
        yield


class Residual(nn.Module):
    """Not a chain: a dense layer around which the input passes, a frozen one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.last = nn.Linear(5, 3)
        self.register_buffer("shift", torch.linspace(-1, 1, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + torch.tanh(self.first(x) + self.frozen(x)) + self.shift)


class Mixing(nn.Module):
    """A model whose logits of one example depend on the others of its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x - x.mean(dim=0))


def built(name: str, shape: tuple[int, ...], dtype: str = "float64", **fields: Any) -> nn.Module:
    return models.build({"name": name, "dtype": dtype, **fields}, input_shape=shape, num_classes=3, seed=2)


def residual() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Residual().double()


def examples(model: nn.Module, sizes: list[int], shape: tuple[int, ...], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    return [
        (torch.randn(size, *shape, generator=draw, dtype=dtype), torch.randint(3, (size,), generator=draw))
        for size in sizes
    ]


def corrected(start: Mapping[str, Tensor], client: int, kind: str) -> Correction:
    """No correction, a pull, offsets of some names, or both, of another size for each client."""
    draw = torch.Generator().manual_seed(client)
    names = [name for place, name in enumerate(start) if (place + client) % 2]
    offset = {name: 0.1 * torch.randn(start[name].shape, generator=draw, dtype=start[name].dtype) for name in names}
    return Correction(offset if "offset" in kind else None, 0.3 * client if "pull" in kind else 0.0)


def compare(model: nn.Module, tasks: list[Task], data: Any, options: LocalSettings, tolerance: float) -> None:
    shape = tuple(data[0][0].shape[1:])
    stacked = Batched(model, options, shape).train(tasks, data, run_seed=5)
    total = stacked.weighted_sum([0.5 + row for row in range(len(tasks))])
    expected_total = {name: torch.zeros_like(tensor) for name, tensor in modules.tensors(model).items()}
    for row, (task, (x, y)) in enumerate(zip(tasks, data, strict=True)):
        expected = train(model, task, x, y, options, run_seed=5)
        got = stacked.tree(row)
        assert list(got) == list(expected.delta)
        for name, tensor in expected.delta.items():
            away = float((got[name] - tensor).norm())
            assert away <= tolerance * (1e-3 + float(tensor.norm())), (name, row)
            expected_total[name] += (0.5 + row) * tensor
        assert stacked.num_steps[row] == expected.num_steps
        assert math.isclose(stacked.loss[row], expected.loss, rel_tol=max(tolerance, 1e-9))
        assert stacked.failed[row] == ""
    for name, tensor in expected_total.items():
        assert float((total[name] - tensor).norm()) <= 10 * tolerance * (1e-3 + float(tensor.norm())), name


KINDS = st.sampled_from(["mlp", "logistic", "wide", "cnn", "residual"])


@settings(max_examples=12, deadline=None)
@given(
    kind=KINDS,
    sizes=st.lists(st.integers(1, 11), min_size=1, max_size=4),
    steps=st.lists(st.one_of(st.none(), st.integers(1, 7)), min_size=4, max_size=4),
    batch_size=st.one_of(st.none(), st.integers(1, 6)),
    epochs=st.integers(1, 2),
    optimizer=st.sampled_from(OPTIMIZERS),
    clip_norm=st.sampled_from([None, 0.2, 1.0]),
    correction=st.sampled_from(["", "pull", "offset", "pull and offset"]),
    repeat=st.integers(0, 1),
)
def test_side_by_side_is_one_by_one(
    kind: str,
    sizes: list[int],
    steps: list[int | None],
    batch_size: int | None,
    epochs: int,
    optimizer: dict[str, Any],
    clip_norm: float | None,
    correction: str,
    repeat: int,
) -> None:
    shape: tuple[int, ...] = (2, 5, 5) if kind == "cnn" else (5,)
    if kind == "residual":
        model = residual()
    elif kind == "cnn":
        model = built("cnn", shape, filters=[3, 4], dense=6)
    elif kind == "wide":
        shape, model = (201,), built("mlp", (201,), hidden=[40])
    else:
        model = built(kind, shape, **({"hidden": [7, 6]} if kind == "mlp" else {}))
    start = modules.snapshot(model)
    options = LocalSettings(epochs, None, batch_size, optimizer, clip_norm)
    tasks = [
        Task(client + 3, 2, start, repeat * client, steps[client], corrected(start, client, correction))
        for client in range(len(sizes))
    ]
    compare(model, tasks, examples(model, sizes, shape), options, 1e-10)


@pytest.mark.parametrize("optimizer", OTHERS)
def test_every_elementwise_optimizer_of_torch_keeps_its_memory_as_clients_leave(optimizer: str) -> None:
    model = residual()
    start = modules.snapshot(model)
    tasks = [Task(client, 1, start, num_steps=steps) for client, steps in enumerate([2, 5, 1, 3])]
    options = LocalSettings(1, None, 3, {"name": optimizer, "lr": 0.01}, None)
    compare(model, tasks, examples(model, [4, 7, 3, 5], (5,)), options, 1e-9)


@pytest.mark.parametrize(("name", "shape"), [("mlp", (1, 9, 9)), ("cnn", (3, 9, 9))])
def test_float32_differs_by_rounding_only(name: str, shape: tuple[int, ...]) -> None:
    model = built(name, shape, dtype="float32")
    start = modules.snapshot(model)
    tasks = [Task(client, 1, start) for client in range(3)]
    compare(model, tasks, examples(model, [20, 17, 20], shape), LocalSettings(1, None, 10, SGD, None), 1e-5)


@pytest.mark.parametrize("optimizer", [SGD, OPTIMIZERS[2], OPTIMIZERS[3]])
def test_clients_may_start_from_different_versions(optimizer: dict[str, Any]) -> None:
    model = built("mlp", (201,), hidden=[40])
    starts = [modules.snapshot(model), {name: -tensor for name, tensor in modules.snapshot(model).items()}]
    tasks = [Task(client, 1, starts[client % 2]) for client in range(3)]
    compare(model, tasks, examples(model, [6, 6, 5], (201,)), LocalSettings(2, None, 4, optimizer, None), 1e-10)


def test_tokens_go_through_the_general_program() -> None:
    model = models.build(
        {"name": "transformer", "dtype": "float64", "layers": 1, "heads": 2, "width": 8},
        input_shape=(6,), num_classes=3, seed=0,
    )  # fmt: skip
    start = modules.snapshot(model)
    draw = torch.Generator().manual_seed(0)
    data = [tuple(torch.randint(3, (size, 6), generator=draw) for _ in "xy") for size in (4, 3, 5)]
    tasks = [Task(client, 1, start, correction=Correction(None, 0.1)) for client in range(3)]
    compare(model, tasks, data, LocalSettings(1, None, 2, OPTIMIZERS[1], 0.5), 1e-10)


@pytest.mark.parametrize("optimizer", [SGD, OPTIMIZERS[2], OPTIMIZERS[4]])
def test_grouped_convolutions_of_several_clients_agree(optimizer: dict[str, Any]) -> None:
    """On a CPU convolutions take one client at a time; this is the program that a GPU runs."""
    shape = (2, 7, 7)
    model = built("cnn", shape, filters=[3, 4], dense=6)
    start = modules.snapshot(model)
    sizes = [7, 4, 6]
    data = examples(model, sizes, shape)
    tasks = [Task(client, 1, start, num_steps=steps) for client, steps in enumerate([2, 4, 3])]
    options = LocalSettings(1, None, 3, optimizer, 0.5)
    links = parse(model, shape)
    assert links is not None
    with torch.no_grad():
        for program in (Hand(links, list(start), options), General(model, list(start), options)):
            trees = program.train(tasks, joined(data), schedule(tasks, sizes, options, 5)).multiply_out()
            for row, task in enumerate(tasks):
                for name, tensor in train(model, task, *data[row], options, run_seed=5).delta.items():
                    torch.testing.assert_close(trees[name][row], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
def test_a_diverging_client_is_named_and_spoils_no_other(kind: str) -> None:
    model = residual() if kind == "residual" else built("mlp", (5,), hidden=[40])
    start = modules.snapshot(model)
    data = examples(model, [6, 6, 6], (5,))
    tasks = [Task(client, 1, start) for client in range(3)]
    options = LocalSettings(3, None, 4, SGD, None)
    fine = Batched(model, options, (5,)).train(tasks, data, run_seed=1)
    data[1] = (data[1][0] * 1e200, data[1][1])
    spoilt = Batched(model, options, (5,)).train(tasks, data, run_seed=1)
    with pytest.raises(NotFinite):
        train(model, tasks[1], *data[1], options, run_seed=1)
    assert [bool(why) for why in spoilt.failed] == [False, True, False] and "diverged" in spoilt.failed[1]
    total = spoilt.weighted_sum([1.0, 1.0, 2.0])
    for name, tensor in total.items():
        torch.testing.assert_close(tensor, fine.tree(0)[name] + 2.0 * fine.tree(2)[name], rtol=1e-12, atol=1e-14)


def test_a_client_that_has_stopped_moves_by_no_bit_while_others_go_on() -> None:
    model = built("mlp", (5,), hidden=[7])
    start = modules.snapshot(model)
    data = examples(model, [6, 6], (5,))
    options = LocalSettings(1, None, 2, OPTIMIZERS[4], None)
    ends = []
    for others in (2, 9):
        tasks = [Task(0, 1, start, num_steps=2), Task(1, 1, start, num_steps=others)]
        ends.append(Batched(model, options, (5,)).train(tasks, data, run_seed=1).tree(0))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in start)


def test_bits_do_not_depend_on_how_the_examples_are_handed_over_or_how_often() -> None:
    model = built("mlp", (5,), hidden=[7])
    tasks = [Task(client, 1, modules.snapshot(model)) for client in range(3)]
    data = examples(model, [6, 4, 5], (5,))
    batched = Batched(model, LocalSettings(2, None, 3, SGD, None), (5,))
    ways: list[Any] = [data, joined(data), lambda part: joined([data[task.client] for task in part])]
    results = [batched.train(tasks, way, run_seed=1).deltas for way in ways]
    assert all(torch.equal(results[0][name], other[name]) for other in results[1:] for name in other)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "residual"])
@pytest.mark.parametrize(("size", "own_steps"), [(2, None), (3, [None, 1, 3]), (None, [1, 1, 1])])
def test_only_examples_that_steps_see_are_read(kind: str, size: int | None, own_steps: list[int | None] | None) -> None:
    """Clients of 11, 4 and 30 examples: two steps of three see all that the second has, and part of the others'."""
    shape = (2, 5, 5) if kind == "cnn" else (5,)
    model = built("cnn", shape, filters=[3], dense=4) if kind == "cnn" else residual()
    if kind == "mlp":
        model = built("mlp", (5,), hidden=[7])
    x, y = (tensor.numpy() for tensor in examples(model, [45], shape)[0])
    data = Dataset("toy", "classification", x, y, x, y, 3, shape)
    rows = np.split(np.random.default_rng(5).permutation(45), [11, 15])
    options = LocalSettings(1, 2, size, SGD, None)
    start = modules.snapshot(model)
    tasks = [Task(client, 1, start, num_steps=steps) for client, steps in enumerate(own_steps or [None] * 3)]
    block = gather(data, tasks, rows, options, torch.float64, torch.device("cpu"), run_seed=4)
    assert block.sizes == {2: (4, 4, 4), 3: (6, 3, 9), None: (11, 4, 30)}[size]
    whole = [(torch.from_numpy(x[own]), torch.from_numpy(y[own])) for own in rows]
    batched = Batched(model, options, shape)
    part, all_read = (batched.train(tasks, given, run_seed=4) for given in (block, whole))
    assert part.num_steps == all_read.num_steps and part.loss == pytest.approx(all_read.loss, rel=1e-12)
    for place, task in enumerate(tasks):
        loop = train(model, task, *whole[place], options, run_seed=4).delta
        for name, tensor in loop.items():
            torch.testing.assert_close(part.tree(place)[name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("run_seed", [0, 7, 2**31 + 5, 2**70 + 3])
def test_seeds_made_for_many_clients_at_once_are_those_made_one_by_one(run_seed: int) -> None:
    for indices in ([(3, client) for client in range(9)], [(1, 5, 2)], [(1, 2**33), (0, 0)], [(4, 5), (4, 5, 1)]):
        for rng, each in zip(generators(run_seed, "batches", indices), indices, strict=True):
            expected = generator(run_seed, "batches", *each)
            np.testing.assert_array_equal(rng.permutation(13), expected.permutation(13))
            np.testing.assert_array_equal(rng.permutation(5), expected.permutation(5))


def test_batches_are_those_of_the_loop() -> None:
    options = LocalSettings(2, None, 4, SGD, None)
    sizes, wanted = [9, 3, 8, 4, 1], [None, 5, 1, None, 3]
    tasks = [Task(client, 1, {}, client % 2, steps) for client, steps in enumerate(wanted)]
    plan = schedule(tasks, sizes, options, 6)
    for row, place in enumerate(plan.order):
        task = tasks[place]
        rng = generator(6, "batches", *task.seed_indices)
        expected = [each.tolist() for each in batches(sizes[place], options, rng, task.num_steps)]
        got = [plan.chosen[row, step, : plan.counts[row, step]].tolist() for step in range(plan.num_steps[row])]
        assert got == expected


def data_of(model: nn.Module, shape: tuple[int, ...]) -> Dataset:
    x, y = (tensor.numpy() for tensor in examples(model, [12], shape)[0])
    return Dataset("toy", "classification", x, y, x, y, 3, shape)


def test_what_cannot_be_batched_is_refused_with_the_reason() -> None:
    plain = LocalSettings(1, None, 4, SGD, None)
    norm = built("resnet", (1, 8, 8), depth=8, width=4, norm="batch")
    assert "BatchNorm2d" in refusal(norm, plain, data_of(norm, (1, 8, 8)))
    dropout = built("mlp", (5,), dropout=0.5)
    assert "random numbers" in refusal(dropout, plain, data_of(dropout, (5,)))
    mixing = Mixing().double()
    assert "mixes the examples" in refusal(mixing, plain, data_of(mixing, (5,)))
    chain = built("mlp", (5,))
    assert "adafactor" in refusal(chain, plain._replace(optimizer={"name": "adafactor"}), data_of(chain, (5,)))
    diverging = plain._replace(optimizer={"name": "sgd", "lr": 1e200, "momentum": 0.9})
    fine = residual()
    assert "diverged" in refusal(fine, diverging, data_of(fine, (5,)))
    before = modules.snapshot(fine)
    assert refusal(fine, plain, data_of(fine, (5,))) == "" and refusal(chain, plain, data_of(chain, (5,))) == ""
    assert all(torch.equal(before[name], tensor) for name, tensor in modules.tensors(fine).items())


def test_choice_follows_the_rule_and_says_why() -> None:
    options = LocalSettings(1, None, 4, SGD, None)
    chain, module = built("mlp", (5,)), residual()
    assert choose(chain, options, data_of(chain, (5,)), [12] * 20, 10).kind == "batched"
    assert choose(chain, options, data_of(chain, (5,)), [12] * 20, 1).kind == "loop"
    assert choose(module, options, data_of(module, (5,)), [12] * 20, 10).kind == "batched"
    few = choose(module, options, data_of(module, (5,)), [12] * 20, 3)
    assert few.kind == "loop" and "3 clients" in few.reason
    tasks = [Task(client, 1, modules.snapshot(chain)) for client in range(2)]
    block: Block = joined(examples(chain, [12, 12], (5,)))
    found = measure(chain, options, data_of(chain, (5,)), tasks, block, run_seed=1, repeats=1)
    assert found.loop_s is not None and found.batched_s is not None and found.loop_s > 0 and found.batched_s > 0
    assert (found.kind == "batched") == (found.loop_s > found.batched_s)
