"""Forward-forward against numbers worked out by hand, and the labels that are written into inputs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from strategies.local.base import LocalModule, LocalRule
from strategies.local.forward_forward import ForwardForward, build, normalised
from strategies.local.label_input import with_every_label, with_labels, with_neutral_label, wrong_labels
from strategies.local.serial import predict, train_batch

CLASSES = 3
X = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 6)))
Y = torch.tensor([0, 2, 1, 2])


def made(**arguments: object) -> tuple[LocalRule, list[LocalModule], list[nn.Module]]:
    torch.manual_seed(1)
    sizes = (6, 5, 7, 8)
    units: list[nn.Module] = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
    units.append(nn.Linear(8, CLASSES))
    rule = build(**arguments)  # type: ignore[arg-type]
    modules = rule.modules(units, num_classes=CLASSES, input_shape=(6,), seed=3)
    return rule, [module.double() for module in modules], units


def array(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy().copy()


def test_a_layers_loss_and_gradient_are_those_worked_out_by_hand() -> None:
    theta, peer = 1.5, 0.3
    rule, modules, units = made(threshold=theta, peer=peer)
    carry = rule.start(X, Y, CLASSES, 5)
    module, linear = modules[0], units[0][0]  # type: ignore[index]
    sent = module(carry, Y, 0)
    loss = module.learn()
    x = np.concatenate([array(carry["positive"]), array(carry["negative"])])
    x /= np.sqrt((x**2).mean(1, keepdims=True))
    z = np.maximum(x @ array(linear.weight).T + array(linear.bias), 0)
    excess, positive = (z**2).sum(1) - theta, np.arange(8) < 4
    signs = np.where(positive, 1.0, -1.0)
    activity = 0.9 * 0.5 + 0.1 * z[:4].mean(0)
    apart = activity - activity.mean()
    assert loss == pytest.approx(np.log1p(np.exp(-signs * excess)).mean() + peer * (apart**2).mean(), rel=1e-7)
    by_goodness = (1 / (1 + np.exp(-excess)) - positive) / 8
    by_z = by_goodness[:, None] * 2 * z
    by_z[:4] += peer * 2 / 5 * apart * 0.1 / 4
    by_z *= z > 0
    assert np.allclose(array(linear.weight.grad), by_z.T @ x, atol=1e-8)
    assert np.allclose(array(linear.bias.grad), by_z.sum(0), atol=1e-8)
    assert np.allclose(np.concatenate([array(sent["positive"]), array(sent["negative"])]), z, atol=1e-7)
    assert np.allclose(array(module.activity), activity, atol=1e-7)  # type: ignore[arg-type]


def test_only_directions_are_heard_from_the_layer_before() -> None:
    scaled = normalised(X * torch.tensor([[1.0], [2.0], [30.0], [0.1]]))
    assert torch.allclose(scaled, normalised(X), atol=1e-6)
    assert torch.allclose(normalised(X.view(4, 2, 3, 1)).square().mean((1, 2, 3)), torch.ones(4).double())


def test_goodness_answers_with_the_label_that_makes_all_layers_but_the_first_most_active() -> None:
    rule, modules, units = made()
    scores = predict(modules, rule, X, num_classes=CLASSES)
    for label in range(CLASSES):
        h, heard = with_labels(X, torch.full((4,), label), CLASSES), torch.zeros(4).double()
        for index, unit in enumerate(units[:-1]):
            h = unit(normalised(h))
            heard = heard + (h**2).sum(1) if index else heard
        assert torch.allclose(scores[:, label], heard, atol=1e-12)


def test_softmax_answers_from_a_neutral_pass_through_all_layers_but_the_first() -> None:
    rule, modules, units = made(answer="softmax")
    last = modules[-1]
    assert isinstance(last, ForwardForward) and isinstance(last.classifier, nn.Linear)
    assert last.classifier.in_features == 7 + 8
    h, features = with_neutral_label(X, CLASSES), []
    for unit in units[:-1]:
        h = unit(normalised(h))
        features.append(normalised(h))
    expected = last.classifier(torch.cat(features[1:], 1))
    assert torch.allclose(predict(modules, rule, X, num_classes=CLASSES), expected, atol=1e-12)
    carry = rule.start(X, Y, CLASSES, 0)
    for module in modules:
        carry = module(carry, Y, 0)
    last.learn()
    by_logits = (expected.softmax(1) - nn.functional.one_hot(Y, CLASSES)) / 4
    assert torch.allclose(last.classifier.bias.grad, by_logits.sum(0).detach(), atol=1e-12)


def test_one_layer_alone_is_heard() -> None:
    rule = build()
    modules = rule.modules([nn.Linear(6, 5), nn.Linear(5, 3)], num_classes=3, input_shape=(6,), seed=0)
    assert predict(modules, rule, X.float(), num_classes=3).abs().min() > 0


def test_labels_are_written_at_the_height_of_the_example() -> None:
    x = torch.tensor([[[1.0, 2.0], [3.0, -4.0]], [[0.5, 0.0], [0.0, 0.25]]])
    written = with_labels(x, torch.tensor([1, 2]), 3)
    assert written.tolist() == [[[0, 4], [0, -4]], [[0, 0], [0.5, 0.25]]]
    assert with_neutral_label(x, 2)[0].tolist() == [[2, 2], [3, -4]]
    every = with_every_label(x, 3)
    assert torch.equal(every[torch.arange(2), torch.tensor([1, 2])], written) and every.shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match="no room for a label of 5"):
        with_labels(x, torch.tensor([1, 2]), 5)


def test_wrong_labels_are_wrong_and_all_of_those() -> None:
    labels = torch.arange(3000) % 3
    wrong = wrong_labels(labels, 3, 1)
    counts = np.bincount(array(3 * labels + wrong), minlength=9).reshape(3, 3)
    assert (np.diag(counts) == 0).all()
    assert ((counts > 430) | np.eye(3, dtype=bool)).all()
    with pytest.raises(ValueError, match="at least 2 classes"):
        wrong_labels(labels, 1, 1)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'loud'"):
        build(answer="loud")
    with pytest.raises(ValueError, match="got the head alone"):
        build().modules([nn.Linear(6, 3)], num_classes=3, input_shape=(6,), seed=0)


def test_digits_are_learned() -> None:
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Sequential(nn.Linear(64, 64), nn.ReLU())]
    rule = build()
    modules = rule.modules([*units, nn.Linear(64, 10)], num_classes=10, input_shape=(64,), seed=0)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9) for module in modules]
    for step in range(84):
        rows = slice(100 * (step % 14), 100 * (step % 14) + 100)
        train_batch(modules, optimizers, rule, x[rows], y[rows], step, num_classes=10)
    answers = predict(modules, rule, x[1400:], num_classes=10).argmax(dim=1)
    assert (answers == y[1400:]).float().mean() > 0.4
