"""Physical local learning against numbers worked out by hand, with boxes that refuse to be differentiated."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from strategies.local.base import LocalModule, LocalRule
from strategies.local.label_input import with_labels
from strategies.local.phyll import BlackBox, NotDifferentiable, PhysicalLayer, build
from strategies.local.serial import predict, train_batch

CLASSES = 3
X = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 6)))
Y = torch.tensor([0, 2, 1, 2])


class Plain(nn.Module):
    """A physical system that is no torch program at all: numpy inside."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.mixing = np.random.default_rng(num_in).standard_normal((num_in, num_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.abs(np.exp(1j * x.detach().numpy() @ self.mixing) - 1) ** 2).to(x)


def made(**arguments: Any) -> tuple[LocalRule, list[LocalModule], list[nn.Module]]:
    boxes: list[nn.Module] = [Plain(a, b) for a, b in pairwise((6, 5, 4))]
    rule = build(**arguments)
    modules = rule.modules([*boxes, nn.Linear(4, CLASSES)], num_classes=CLASSES, input_shape=(6,), seed=3)
    return rule, [module.double() for module in modules], boxes


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy().copy()


def read(box: nn.Module, h: np.ndarray) -> np.ndarray:
    amplitudes = np.abs(h) / (np.linalg.norm(h, axis=1, keepdims=True) + 1e-6)
    return np.concatenate([array(box(torch.from_numpy(amplitudes))), h], 1)


def cosine(h: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.abs(h) @ direction / np.linalg.norm(h, axis=1) / np.linalg.norm(direction)


def test_a_black_box_raises_when_a_gradient_is_asked_through_it() -> None:
    box = BlackBox(nn.Sequential(nn.Linear(6, 5), nn.Tanh())).double()
    assert not list(box.parameters()) and len(list(box.buffers())) == 2
    x = X.clone().requires_grad_()
    with pytest.raises(NotDifferentiable):
        box(x).sum().backward()
    assert x.grad is None


def test_training_asks_no_black_box_for_a_gradient() -> None:
    rule, modules, _ = made(inner_steps=3)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    before = [array(parameter) for module in modules for parameter in module.parameters()]
    losses = train_batch(modules, optimizers, rule, X, Y, 0, num_classes=CLASSES)
    after = [array(parameter) for module in modules for parameter in module.parameters()]
    assert len(losses) == 2 and all((old != new).any() for old, new in zip(before, after, strict=True))


def test_a_layers_loss_and_gradient_are_those_worked_out_by_hand() -> None:
    rule, modules, boxes = made(theta=4.0)
    carry = rule.start(X, Y, CLASSES, 5)
    module = modules[0]
    assert isinstance(module, PhysicalLayer)
    sent = module(carry, Y, 0)
    loss = module.learn()
    x = read(boxes[0], np.concatenate([array(carry["positive"]), array(carry["negative"])]))
    h, p = x @ array(module.linear.weight).T + array(module.linear.bias), array(module.direction)
    g, length = cosine(h, p), np.linalg.norm(h, axis=1, keepdims=True)
    difference = g[:4] - g[4:]
    assert loss == pytest.approx(np.log1p(np.exp(-4 * difference)).mean(), rel=1e-9)
    by_difference = -4 / (1 + np.exp(4 * difference)) / 4
    by_g = np.concatenate([by_difference, -by_difference])[:, None]
    by_h = by_g * np.sign(h) * (p / np.linalg.norm(p) / length - g[:, None] * np.abs(h) / length**2)
    assert np.allclose(array(module.linear.weight.grad), by_h.T @ x, atol=1e-12)
    assert np.allclose(array(module.linear.bias.grad), by_h.sum(0), atol=1e-12)
    assert np.allclose(np.concatenate([array(sent["positive"]), array(sent["negative"])]), h, atol=1e-12)


def test_the_answer_is_the_label_of_the_largest_sum_of_cosines_in_a_pass_a_label() -> None:
    rule, modules, boxes = made()
    scores = array(predict(modules, rule, X, num_classes=CLASSES))
    for label in range(CLASSES):
        h, total = array(with_labels(X, torch.full((4,), label), CLASSES)), np.zeros(4)
        for module, box in zip(modules, boxes, strict=True):
            assert isinstance(module, PhysicalLayer)
            h = read(box, h) @ array(module.linear.weight).T + array(module.linear.bias)
            total += cosine(h, array(module.direction))
        assert np.allclose(scores[:, label], total, atol=1e-12)


def test_directions_and_boxes_stay_bit_for_bit_while_layers_learn() -> None:
    torch.manual_seed(0)
    rule = build(inner_steps=4)
    units = [nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)), nn.Linear(5, CLASSES)]
    modules = rule.modules(units, num_classes=CLASSES, input_shape=(6,), seed=3)
    buffers = {name: array(buffer) for name, buffer in modules[0].named_buffers()}
    optimizer = torch.optim.SGD(modules[0].parameters(), lr=0.1)
    for step in range(3):
        train_batch(modules, [optimizer], rule, X.float(), Y, step, num_classes=CLASSES)
    assert np.linalg.norm(buffers["direction"]) == pytest.approx(1.0, rel=1e-6)
    assert len(buffers) == 1 + 2 + 5
    assert all(np.array_equal(array(buffer), buffers[name]) for name, buffer in modules[0].named_buffers())
    assert [name for name, _ in modules[0].named_parameters()] == ["linear.weight", "linear.bias"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build(inner_steps=0)
    with pytest.raises(ValueError, match="got the head alone"):
        build().modules([nn.Linear(6, 3)], num_classes=3, input_shape=(6,), seed=0)
    with pytest.raises(ValueError, match=r"unit 0 gives \[2, 4, 4\], expected a vector"):
        build().modules([nn.Conv2d(1, 2, 3), nn.Linear(2, 3)], num_classes=3, input_shape=(1, 6, 6), seed=0)


def test_digits_are_learned() -> None:
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    rule = build(inner_steps=5)
    modules = rule.modules([Plain(64, 64), nn.Linear(64, 10)], num_classes=10, input_shape=(64,), seed=0)
    optimizers = [torch.optim.Adam(module.parameters(), lr=5e-3) for module in modules]
    for step in range(42):
        rows = slice(100 * (step % 14), 100 * (step % 14) + 100)
        train_batch(modules, optimizers, rule, x[rows], y[rows], step, num_classes=10)
    answers = predict(modules, rule, x[1400:], num_classes=10).argmax(dim=1)
    assert (answers == y[1400:]).float().mean() > 0.6
