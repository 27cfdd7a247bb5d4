"""Modules that run side by side, each a batch behind the one before, do what the serial program does, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from strategies.local import Carry, LocalModule, predict, rule, serial, train_batch, units
from trainers.models import build

NUM_BATCHES = 4
SETTINGS = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}


def model_and_modules() -> tuple[nn.Module, list[LocalModule]]:
    """A ResNet-32 of width 4 and its 14 modules."""
    section = {"name": "resnet", "depth": 32, "width": 4, "norm": "batch", "shortcut": "convolution"}
    model = build(section, input_shape=(3, 8, 8), num_classes=10, seed=0)
    return model, rule("auglocal").modules(units(model), num_classes=10, input_shape=(3, 8, 8), seed=3)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 10) for _ in range(NUM_BATCHES)]


def states(modules: list[LocalModule]) -> list[Carry]:
    return [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]


def equal(left: Carry, right: Carry) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def serially() -> list[Carry]:
    _, modules = model_and_modules()
    optimizers = [torch.optim.SGD(module.parameters(), **SETTINGS) for module in modules]
    for t, (x, y) in enumerate(batches()):
        train_batch(modules, optimizers, rule("auglocal"), x, y, t, num_classes=10)
    return states(modules)


def before_learning(module: LocalModule, optimizer, carry: Carry, y: Tensor, seed: int) -> Carry:
    """What is sent was computed before the module learned; it travels as bytes, so the receiver has a copy."""
    sent = {name: tensor.clone() for name, tensor in module(carry, y, seed).items()}
    serial.learn(module, optimizer)
    return sent


def after_learning(module: LocalModule, optimizer, carry: Carry, y: Tensor, seed: int) -> Carry:
    module(carry, y, seed)
    serial.learn(module, optimizer)
    buffers = {name: tensor.clone() for name, tensor in module.named_buffers()}
    with torch.no_grad():
        sent = {"h": module.units(carry["h"])}
    for name, tensor in module.named_buffers():
        tensor.copy_(buffers[name])
    return sent


def in_half_precision(module: LocalModule, optimizer, carry: Carry, y: Tensor, seed: int) -> Carry:
    return {name: sent.half().float() for name, sent in before_learning(module, optimizer, carry, y, seed).items()}


def skewed(step: Callable[..., Carry], order: int) -> list[Carry]:
    """Run module l on batch t at tick t + l; within a tick in either order."""
    _, modules = model_and_modules()
    optimizers = [torch.optim.SGD(module.parameters(), **SETTINGS) for module in modules]
    data, links = batches(), [[] for _ in range(len(modules) + 1)]
    for tick in range(NUM_BATCHES + len(modules) - 1):
        if tick < NUM_BATCHES:
            links[0].append({"h": data[tick][0]})
        due = [index for index in range(len(modules)) if 0 <= tick - index < NUM_BATCHES]
        given = {index: links[index].pop(0) for index in due}  # before any module of this tick sends
        for index in due[::order]:
            t = tick - index
            seed = serial.module_seed(t, index)
            links[index + 1].append(step(modules[index], optimizers[index], given[index], data[t][1], seed))
    assert [len(link) for link in links] == [0] * len(modules) + [NUM_BATCHES]
    return states(modules)


@pytest.mark.parametrize("order", [1, -1])
def test_a_skewed_schedule_gives_the_serial_programs_bits(serially: list[Carry], order: int) -> None:
    assert all(equal(left, right) for left, right in zip(skewed(before_learning, order), serially, strict=True))
    assert any("running_mean" in name for name in serially[0])


@pytest.mark.parametrize("step", [after_learning, in_half_precision])
def test_sending_what_was_computed_after_learning_or_in_half_precision_does_not(serially, step) -> None:
    same = [equal(left, right) for left, right in zip(skewed(step, 1), serially, strict=True)]
    assert same == [True] + [False] * 13


def test_one_optimizer_stepped_after_the_whole_batch_gives_the_same_bits(serially, monkeypatch) -> None:
    calls: list[int] = []
    backward = Tensor.backward
    monkeypatch.setattr(
        Tensor, "backward", lambda loss, *rest, **more: (calls.append(1), backward(loss, *rest, **more))
    )
    _, modules = model_and_modules()
    optimizer = torch.optim.SGD([p for module in modules for p in module.parameters()], **SETTINGS)
    for x, y in batches():
        optimizer.zero_grad()
        carry = {"h": x}
        for module in modules:
            carry = module(carry, y, 0)
            module.learn()
        optimizer.step()
    assert all(equal(left, right) for left, right in zip(states(modules), serially, strict=True))
    assert len(calls) == NUM_BATCHES * len(modules) == 56


def test_the_model_itself_is_what_was_trained(serially: list[Carry]) -> None:
    model, modules = model_and_modules()
    for module, state in zip(modules, serially, strict=True):
        module.load_state_dict(state)
    x, _ = batches()[0]
    scores = predict(modules, rule("auglocal"), x, num_classes=10)
    assert torch.equal(scores, model.eval()(x))
