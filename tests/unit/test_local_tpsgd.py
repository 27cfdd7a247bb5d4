"""tpSGD against its formulas in numpy, and its promises: no autograd, projections that stay, nothing but x and y."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from strategies.local.base import LocalModule, LocalRule
from strategies.local.serial import predict, train_batch
from strategies.local.tpsgd import TargetProjection, build

CLASSES = 3
X = np.random.default_rng(0).standard_normal((6, 5))
Y = np.array([0, 2, 1, 1, 0, 2])


def made(units: list[nn.Module], shape: tuple[int, ...], **arguments: str) -> tuple[LocalRule, list[LocalModule]]:
    rule = build(**arguments)
    return rule, [m.double() for m in rule.modules(units, num_classes=CLASSES, input_shape=shape, seed=3)]


def vectors(activation: type[nn.Module]) -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(5, 7), activation()),
        nn.Sequential(nn.Linear(7, 4), activation()),
        nn.Linear(4, CLASSES),
    ]


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy().copy()


SLOPES = {
    nn.ReLU: lambda z: (z > 0) * 1.0,
    nn.Tanh: lambda z: 1 / np.cosh(z) ** 2,
    nn.Sigmoid: lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
}


@pytest.mark.parametrize("activation", SLOPES)
@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_every_layers_gradient_is_the_papers_formula(activation: type[nn.Module], loss: str) -> None:
    units = vectors(activation)
    rule, modules = made(units, (5,), loss=loss)
    carry, h = rule.start(torch.from_numpy(X), torch.from_numpy(Y), CLASSES, 0), X
    for module in modules:
        assert isinstance(module, TargetProjection)
        carry = module(carry, torch.from_numpy(Y), 0)
        weighted = module.unit if isinstance(module.unit, nn.Linear) else module.unit[0]
        before, z = h, h @ array(weighted.weight).T + array(weighted.bias)
        if module.projection is None:
            h = z
            powers = np.exp(z)
            delta = powers / powers.sum(1, keepdims=True) - np.eye(CLASSES)[Y]
        else:
            h = array(activation()(torch.from_numpy(z)))
            missing = h - array(module.projection)[:, Y].T
            delta = (np.sign(missing) if loss == "l1" else missing) * SLOPES[activation](z)
            value = np.abs(missing).sum() / 6 if loss == "l1" else (missing**2).sum() / 2 / 6
            assert module.learn() == pytest.approx(value, rel=1e-12)
        if module.projection is None:
            module.learn()
        assert np.allclose(array(weighted.weight.grad), delta.T @ before / 6, atol=1e-14)
        assert np.allclose(array(weighted.bias.grad), delta.mean(0), atol=1e-14)
        assert np.allclose(array(carry["h"]), h, atol=1e-14)


@pytest.mark.parametrize("maps", ["mean", "each"])
def test_a_convolutions_gradient_is_that_of_its_loss_by_autograd(maps: str) -> None:
    torch.manual_seed(1)
    unit = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=True), nn.Tanh(), nn.MaxPool2d(2))
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 4, CLASSES))
    _, modules = made([unit, head], (2, 8, 8), maps=maps)
    x, y = torch.randn(6, 2, 8, 8, dtype=torch.float64), torch.from_numpy(Y)
    module = modules[0]
    assert isinstance(module, TargetProjection) and module.projection is not None
    carry = module({"h": x}, y, 0)
    loss = module.learn()
    by_formula = [parameter.grad for parameter in module.parameters()]
    h = unit[1](unit[0](x))
    target = module.projection[:, y].T[:, :, None, None]
    places = h[0, 0].numel()
    if maps == "mean":
        stated = places * (h.mean((2, 3), keepdim=True) - target).square().sum() / 2 / 6
    else:
        stated = (h - target).square().sum() / 2 / 6
    by_autograd = torch.autograd.grad(stated, list(module.parameters()))
    assert loss == pytest.approx(stated.item(), rel=1e-12)
    for formula, autograd in zip(by_formula, by_autograd, strict=True):
        assert formula is not None and torch.allclose(formula, autograd, atol=1e-13)
    assert torch.equal(carry["h"], unit(x).detach())


def test_it_runs_where_autograd_cannot() -> None:
    rule, modules = made(vectors(nn.Tanh), (5,))
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    before = [array(parameter) for module in modules for parameter in module.parameters()]
    with torch.inference_mode():
        train_batch(modules, optimizers, rule, torch.from_numpy(X), torch.from_numpy(Y), 0, num_classes=CLASSES)
    after = [array(parameter) for module in modules for parameter in module.parameters()]
    assert all((old != new).any() for old, new in zip(before, after, strict=True))


def test_projections_stay_bit_for_bit_and_come_again_from_the_seed() -> None:
    rule, modules = made(vectors(nn.Tanh), (5,))
    _, again = made(vectors(nn.ReLU), (5,))
    _, sigmoid = made(vectors(nn.Sigmoid), (5,))
    projections = [array(module.projection) for module in modules[:-1] if isinstance(module, TargetProjection)]
    assert not np.array_equal(projections[0][:4], projections[1])
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    for step in range(5):
        train_batch(modules, optimizers, rule, torch.from_numpy(X), torch.from_numpy(Y), step, num_classes=CLASSES)
    for index, old in enumerate(projections):
        for other, shift in ((modules, 0.0), (again, 0.0), (sigmoid, 0.5)):
            module = other[index]
            assert isinstance(module, TargetProjection)
            assert np.allclose(array(module.projection), old + shift, atol=1e-7)
        assert np.array_equal(array(modules[index].projection), old)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU()), "has a BatchNorm1d"),
        (nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4)), "has 2 layers with weights"),
        (nn.Sequential(nn.Linear(5, 4), nn.GELU()), "has a GELU"),
        (nn.Conv2d(5, 4, 3, padding="same"), "has padding 'same'"),
    ],
)
def test_units_without_a_formula_are_refused(unit: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made([unit, nn.Linear(4, CLASSES)], (5,))


def test_a_head_that_is_no_affine_map_and_losses_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="the last unit is the head"):
        made([nn.Linear(5, 4), nn.Sequential(nn.Linear(4, CLASSES), nn.ReLU())], (5,))
    with pytest.raises(ValueError, match="got 'l3'"):
        build(loss="l3")
    with pytest.raises(ValueError, match="got 'some'"):
        build(maps="some")


def test_digits_are_learned() -> None:
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()), nn.Sequential(nn.Linear(64, 64), nn.Tanh())]
    rule = build()
    modules = rule.modules([*units, nn.Linear(64, 10)], num_classes=10, input_shape=(64,), seed=0)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    for step in range(70):
        rows = slice(100 * (step % 14), 100 * (step % 14) + 100)
        train_batch(modules, optimizers, rule, x[rows], y[rows], step, num_classes=10)
    answers = predict(modules, rule, x[1400:], num_classes=10).argmax(dim=1)
    assert (answers == y[1400:]).float().mean() > 0.7
