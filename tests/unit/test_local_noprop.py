"""NoProp-DT against exact Gaussian algebra and numbers worked out by hand."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from strategies.local.base import LocalModule, LocalRule
from strategies.local.noprop import OPTIMIZER, Block, build, coefficients, schedule
from strategies.local.serial import learn, module_seed, predict, train_batch
from strategies.seeds import generator

CLASSES = 3


def made(**arguments: object) -> tuple[LocalRule, list[LocalModule]]:
    rule = build(**{"blocks": 4, "hidden": 8, **arguments})  # type: ignore[arg-type]
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Linear(7, CLASSES)]
    return rule, [m.double() for m in rule.modules(units, num_classes=CLASSES, input_shape=(5,), seed=3)]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    return torch.from_numpy(rng.standard_normal((6, 5))), torch.tensor([0, 1, 2, 2, 0, 1])


def optimizers(modules: list[LocalModule]) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9) for module in modules]


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("t", range(1, 6))
def test_the_steps_coefficients_are_those_of_the_gaussian_conditional(t: int) -> None:
    shares = schedule(5)
    before, after = shares[t - 1], shares[t]
    # z_t = sqrt(after) u + e, z_{t-1} = sqrt(before/after) z_t + e': their joint law given u, conditioned on z_{t-1}.
    kept = before / after
    covariance = np.array([[1 - after, np.sqrt(kept) * (1 - after)], [0, kept * (1 - after) + (1 - kept)]])
    assert covariance[1, 1] == pytest.approx(1 - before)
    gain = covariance[0, 1] / covariance[1, 1]
    a, b, c = coefficients(before, after)
    assert b == pytest.approx(gain, abs=1e-14)
    assert a == pytest.approx(np.sqrt(after) - gain * np.sqrt(before), abs=1e-14)
    assert c == pytest.approx(covariance[0, 0] - gain * covariance[0, 1], abs=1e-14)


def test_answers_from_perfect_guesses_follow_the_noisy_labels_they_were_trained_on() -> None:
    shares, mean, variance = schedule(10), 0.0, 1.0
    for before, after in pairwise(shares):
        a, b, c = coefficients(before, after)
        mean, variance = a * 1.0 + b * mean, b * b * variance + c
        assert mean == pytest.approx(np.sqrt(after), abs=1e-12)
        assert variance == pytest.approx(1 - after, abs=1e-12)


def test_the_schedule_begins_with_noise_alone_and_ends_short_of_the_label() -> None:
    shares = schedule(10)
    assert shares[0] == 0 and 0.99 < shares[-1] < 1
    assert (np.diff(shares) > 0).all()
    assert coefficients(shares[0], shares[1]).b == 0


def test_a_blocks_loss_is_the_papers() -> None:
    rule, modules = made(eta=0.3)
    (x, y), t = batch(), 4
    block = modules[t - 1]
    assert isinstance(block, Block) and block.head is not None
    block(rule.start(x, y, CLASSES, 0), y, 11)
    noise = generator(11, "noprop noise").standard_normal((2, 6, CLASSES))
    shares, clean = schedule(4), np.eye(CLASSES)[y]
    z = np.sqrt(shares[t - 1]) * clean + np.sqrt(1 - shares[t - 1]) * noise[0]
    guess = softmax(block.both(torch.cat([block.encoder(x), block.label(torch.from_numpy(z))], 1)).detach().numpy())
    rise = shares[t] / (1 - shares[t]) - shares[t - 1] / (1 - shares[t - 1])
    loss = 4 / 2 * 0.3 * rise * ((guess - clean) ** 2).sum(1).mean()
    last = np.sqrt(shares[t]) * clean + np.sqrt(1 - shares[t]) * noise[1]
    answers = softmax(last @ block.head.weight.detach().numpy().T + block.head.bias.detach().numpy())
    loss += -np.log(answers[np.arange(6), y]).mean()
    assert block.learn() == pytest.approx(loss, rel=1e-12)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def test_a_block_learns_the_same_whatever_the_others_weights_and_whenever() -> None:
    rule, modules = made()
    (x, y), twins, steps = batch(), copy.deepcopy(modules), optimizers(modules)
    for batch_id in range(3):
        train_batch(modules, steps, rule, x, y, batch_id, num_classes=CLASSES)
    for index in (2, 0, 3, 1):  # one block after another, each through all of its batches
        optimizer = optimizers([twins[index]])[0]
        for batch_id in range(3):
            twins[index](rule.start(x, y, CLASSES, batch_id), y, module_seed(batch_id, index))
            learn(twins[index], optimizer)
        assert same(twins[index], modules[index])
    assert rule.stream == "none"
    for parameter in twins[0].parameters():
        parameter.data += 1.0
    twins[1](rule.start(x, y, CLASSES, 3), y, 5)
    modules[1](rule.start(x, y, CLASSES, 3), y, 5)
    assert twins[1].learn() == modules[1].learn()


def test_the_answer_walks_from_noise_by_the_posterior() -> None:
    rule, modules = made(dim=2)
    x, _ = batch()
    carry = rule.start(x, None, CLASSES, 9)
    z = carry["z"].numpy()
    noise = generator(9, "noprop noise").standard_normal((5, 6, 2))
    assert np.array_equal(z, noise[0])
    shares = schedule(4)
    for t, block in enumerate(modules, 1):
        assert isinstance(block, Block)
        guess = block.cleaned(torch.from_numpy(z), x).detach().numpy()
        a, b, c = coefficients(shares[t - 1], shares[t])
        z = a * guess + b * z + np.sqrt(c) * noise[t]
    head = modules[-1].head
    assert isinstance(head, nn.Linear)
    scores = z @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert np.allclose(predict(modules, rule, x, num_classes=CLASSES, seed=9).numpy(), scores, atol=1e-12)


def test_every_block_has_an_encoder_of_its_own_that_begins_like_the_others() -> None:
    _, modules = made()
    encoders = [module.encoder for module in modules if isinstance(module, Block)]
    assert len(encoders) == 4 and all(same(encoders[0], other) for other in encoders[1:])
    assert len({id(p) for module in modules for p in module.parameters()}) == sum(
        len(list(module.parameters())) for module in modules
    )


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 block"):
        build(blocks=0)
    with pytest.raises(ValueError, match="got the head alone"):
        build().modules([nn.Linear(5, CLASSES)], num_classes=CLASSES, input_shape=(5,), seed=0)


def test_digits_are_learned() -> None:
    x, y = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    torch.manual_seed(0)
    rule = build(blocks=2, hidden=32)
    units = [nn.Sequential(nn.Linear(64, 48), nn.ReLU()), nn.Linear(48, 10)]
    modules = rule.modules(units, num_classes=10, input_shape=(64,), seed=0)
    options = {key: value for key, value in OPTIMIZER.items() if key != "name"}
    optimizers = [torch.optim.AdamW(module.parameters(), **{**options, "lr": 1e-2}) for module in modules]  # type: ignore[arg-type]
    for step in range(70):
        rows = slice(100 * (step % 14), 100 * (step % 14) + 100)
        train_batch(modules, optimizers, rule, x[rows], y[rows], step, num_classes=10)
    answers = predict(modules, rule, x[1400:], num_classes=10).argmax(dim=1)
    assert (answers == y[1400:]).float().mean() > 0.5
