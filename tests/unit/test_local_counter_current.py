"""Counter-current learning against its losses in numpy, and what travels down."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from strategies.local.base import Carry, LocalModule, LocalRule
from strategies.local.counter_current import CounterCurrent, build, image_loss, vector_loss
from strategies.local.serial import descend, learn, predict, train_batch

CLASSES = 3
X = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 5)))
Y = torch.tensor([0, 2, 1, 1, 0, 2])


def made(**arguments: object) -> tuple[LocalRule, list[LocalModule]]:
    torch.manual_seed(1)
    units = [nn.Sequential(nn.Linear(5, 7), nn.ELU()), nn.Sequential(nn.Linear(7, 4), nn.ELU()), nn.Linear(4, CLASSES)]
    rule = build(**arguments)  # type: ignore[arg-type]
    modules = [m.double() for m in rule.modules(units, num_classes=CLASSES, input_shape=(5,), seed=3)]
    return rule, modules


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy().copy()


def elu(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, z, np.expm1(z))


def weight(module: LocalModule) -> np.ndarray:
    """B of the level above a module's, which the module has."""
    assert isinstance(module, CounterCurrent) and isinstance(module.feedback_net, nn.Sequential)
    return array(module.feedback_net[1].weight)


def test_the_loss_of_vectors_is_the_papers() -> None:
    rng = np.random.default_rng(2)
    a, c = rng.standard_normal((6, 7)), rng.standard_normal((CLASSES, 7))
    same = array(Y)[:, None] == np.arange(CLASSES)
    stated = 256 * 0.5 / 7 * ((a @ c.T - same) ** 2).mean()
    assert vector_loss(torch.from_numpy(a), torch.from_numpy(c), Y).item() == pytest.approx(stated)


def test_the_loss_of_images_is_the_programs() -> None:
    rng = np.random.default_rng(2)
    a, c = rng.standard_normal((6, 2, 3, 3)), rng.standard_normal((CLASSES, 2, 3, 3))
    loss = image_loss(torch.from_numpy(a), torch.from_numpy(c), Y, weight=2.0, alike=0.3).item()
    a, c = (rows.reshape(-1, 18) / np.linalg.norm(rows.reshape(-1, 18), axis=1, keepdims=True) for rows in (a, c))
    same = array(Y)[:, None] == np.arange(CLASSES)
    stated = 2 * ((a @ c.T - same) ** 2).mean()
    stated += 0.3 * (((a @ a.T - np.eye(6)) ** 2).mean() + ((c @ c.T - np.eye(CLASSES)) ** 2).mean())
    assert loss == pytest.approx(stated, rel=1e-6)


def test_a_level_trains_its_forward_weights_and_the_feedback_from_above_by_hand() -> None:
    _, modules = made(clip=0.0)
    module = modules[1]
    assert isinstance(module, CounterCurrent)
    linear = module.forward_net[0]  # type: ignore[index]
    h = torch.from_numpy(np.random.default_rng(4).standard_normal((6, 7)))
    sent = module({"h": h}, Y, 0)
    module.learn()
    z, down = array(h) @ array(linear.weight).T + array(linear.bias), np.eye(CLASSES) @ weight(module).T
    a, c = elu(z), elu(down)
    off = 2 / (6 * CLASSES) * 256 * 0.5 / 4 * (a @ c.T - (array(Y)[:, None] == np.arange(CLASSES)))
    assert np.allclose(array(linear.weight.grad), (off @ c * np.where(z > 0, 1, np.exp(z))).T @ array(h), atol=1e-12)
    by_down = off.T @ a * np.where(down > 0, 1, np.exp(down))
    assert np.allclose(array(module.feedback_net[1].weight.grad), by_down.T, atol=1e-12)  # type: ignore[index]
    assert np.allclose(array(sent["h"]), a, atol=1e-14)


def test_the_classes_go_down_a_row_each_whatever_the_batch() -> None:
    _, modules = made()
    sent = descend(modules, CLASSES)
    c2 = elu(np.eye(CLASSES) @ weight(modules[1]).T)
    c1 = elu(c2 @ weight(modules[0]).T)
    assert [tuple(c.shape) for c in sent] == [(CLASSES, 7), (CLASSES, 4), (CLASSES, CLASSES)]
    assert np.allclose(array(sent[2]), np.eye(CLASSES)) and np.allclose(array(sent[1]), c2, atol=1e-14)
    assert np.allclose(array(sent[0]), c1, atol=1e-14)
    assert np.allclose(array(modules[0].above), c2, atol=1e-14)  # type: ignore[arg-type]
    assert not any(c.requires_grad for c in sent)


def test_before_anything_came_down_modules_have_what_the_initial_weights_say() -> None:
    _, modules = made()
    before = [array(module.above) for module in modules]  # type: ignore[arg-type]
    descend(modules, CLASSES)
    assert all(np.allclose(array(m.above), old, atol=1e-6) for m, old in zip(modules, before, strict=True))  # type: ignore[arg-type]
    assert np.abs(before[0]).max() > 0


def test_every_batch_meets_the_feedback_of_the_weights_as_they_are() -> None:
    rule, modules = made()
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.5) for module in modules]
    train_batch(modules, optimizers, rule, X, Y, 0, num_classes=CLASSES)
    moved = weight(modules[1])
    train_batch(modules, optimizers, rule, X, Y, 1, num_classes=CLASSES)
    assert np.allclose(array(modules[0].above), elu(moved.T), atol=1e-14)  # type: ignore[arg-type]
    assert not np.allclose(weight(modules[1]), moved)


@pytest.mark.parametrize("late", [1, 2])
def test_a_pipeline_gives_the_bits_of_feedback_some_batches_late(late: int) -> None:
    rule, serial = made()
    pipeline = copy.deepcopy(serial)
    steps = [[torch.optim.SGD(module.parameters(), lr=0.5) for module in found] for found in (serial, pipeline)]
    num_batches, num_modules = 6, len(serial)
    batches = [(X + t, Y.roll(t)) for t in range(num_batches)]

    sent = [descend(serial, CLASSES)] * late
    for t, (x, y) in enumerate(batches):
        sent.append(descend(serial, CLASSES, sent[t]))
        carry = rule.start(x, y, CLASSES, t)
        for module, step in zip(serial, steps[0], strict=True):
            carry = module(carry, y, t)
            learn(module, step)

    # Module k runs batch t at tick t + k. One batch late, modules of a tick begin from the top; two, in any order.
    first, identity = descend(pipeline, CLASSES), torch.eye(CLASSES, dtype=torch.float64)
    down: dict[tuple[int, int], Tensor] = {}
    carries: dict[tuple[int, int], Carry] = {}
    for tick in range(num_batches + num_modules - 1):
        due = [(k, tick - k) for k in range(num_modules) if 0 <= tick - k < num_batches]
        for k, t in reversed(due) if late == 1 else due:
            module, (x, y) = pipeline[k], batches[t]
            assert isinstance(module, CounterCurrent)
            came = identity if k + 1 == num_modules else down[k + 1, t - late] if t >= late else first[k + 1]
            down[k, t] = module.feedback(came)
            carries[k + 1, t] = module(carries[k, t] if k else rule.start(x, y, CLASSES, t), y, t)
        for k, _ in due:
            learn(pipeline[k], steps[1][k])
    for left, right in zip(serial, pipeline, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True)
        )


def test_every_module_clips_its_own_nets_apart() -> None:
    norms = []
    for clip in (0.0, 1e-3):
        rule, modules = made(clip=clip)
        carry = rule.start(X, Y, CLASSES, 0)
        for module in modules:
            carry = module(carry, Y, 0)
            module.learn()
            assert isinstance(module, CounterCurrent)
            for net in (module.forward_net, module.feedback_net):
                if net is not None:
                    gradients = [array(p.grad).ravel() for p in net.parameters()]
                    norms.append(np.linalg.norm(np.concatenate(gradients)))
    assert min(norms[:5]) > 2e-3
    assert np.allclose(norms[5:], 1e-3, rtol=1e-2)


def test_centralised_gradients_of_images_have_no_mean() -> None:
    torch.manual_seed(0)
    units = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2), nn.Sequential(nn.Flatten(), nn.Linear(24, 3))]
    rule = build(clip=0.0)
    modules = rule.modules(units, num_classes=CLASSES, input_shape=(1, 6, 6), seed=0)
    carry = rule.start(torch.randn(6, 1, 6, 6), Y, CLASSES, 0)
    for module in modules:
        carry = module(carry, Y, 0)
        module.learn()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0
            if parameter.dim() > 1:
                means = parameter.grad.flatten(1).mean(1)
                assert means.abs().max() < 1e-6 * max(1.0, parameter.grad.abs().max().item()), name


def test_digits_are_learned() -> None:
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(64, 64), nn.ELU()), nn.Sequential(nn.Linear(64, 64), nn.ELU()), nn.Linear(64, 10)]
    rule = build()
    modules = rule.modules(units, num_classes=10, input_shape=(64,), seed=0)
    optimizers = [torch.optim.SGD(module.parameters(), lr=1.0) for module in modules]
    for step in range(84):
        rows = slice(100 * (step % 14), 100 * (step % 14) + 100)
        train_batch(modules, optimizers, rule, x[rows], y[rows], step, num_classes=10)
    answers = predict(modules, rule, x[1400:], num_classes=10).argmax(dim=1)
    assert (answers == y[1400:]).float().mean() > 0.7
