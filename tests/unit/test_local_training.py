"""The loop of local training: corrections, participations, layouts and optimizers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from strategies.base import Correction
from strategies.seeds import generator
from trainers import layout, models, modules, optimizers
from trainers.local import LocalSettings, NotFinite, Task, needed, train

PLAIN = LocalSettings(1, None, 3, {"name": "sgd", "lr": 0.1}, None)


class Viewing(nn.Module):
    """A network that views an activation as flat, which channels-last memory does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.last = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x).view(len(x), -1))


def toy(shape: tuple[int, ...] = (5,), size: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(size, *shape, generator=draw, dtype=torch.float64), torch.randint(3, (size,), generator=draw)


def mlp() -> nn.Module:
    section = {"name": "mlp", "hidden": [4], "dtype": "float64"}
    return models.build(section, input_shape=(5,), num_classes=3, seed=1)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_corrections_are_added_to_the_gradient_before_it_is_clipped(clip_norm: float | None) -> None:
    model, (x, y) = mlp(), toy()
    start = modules.snapshot(model)
    offset = {"1.bias": torch.full((4,), -0.3, dtype=torch.float64)}
    task = Task(2, 4, start, num_steps=4, correction=Correction(offset, 0.7))
    got = train(model, task, x, y, PLAIN._replace(clip_norm=clip_norm), run_seed=9).delta

    plain = mlp()
    rng, left = generator(9, "batches", 4, 2), 4
    while left:
        order = torch.from_numpy(rng.permutation(7))
        for first in range(0, 7, 3):
            if not left:
                break
            left -= 1
            plain.zero_grad()
            chosen = order[first : first + 3]
            functional.cross_entropy(plain(x[chosen]), y[chosen]).backward()
            with torch.no_grad():
                for name, parameter in plain.named_parameters():
                    parameter.grad += 0.7 * (parameter - start[name]) + offset.get(name, 0.0)
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
                for parameter in plain.parameters():
                    parameter -= 0.1 * parameter.grad
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(got[name], parameter.detach() - start[name], rtol=0.0, atol=1e-12)


def test_a_second_participation_from_one_version_draws_other_batches() -> None:
    model, (x, y) = mlp(), toy()
    start = modules.snapshot(model)
    first, again, second = (train(model, Task(0, 1, start, n), x, y, PLAIN, run_seed=1).delta for n in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in start)
    assert any(not torch.equal(first[name], second[name]) for name in start)


def test_a_participation_without_steps_is_refused() -> None:
    model, (x, y) = mlp(), toy()
    with pytest.raises(ValueError, match="at least one"):
        train(model, Task(0, 1, modules.snapshot(model), num_steps=0), x, y, PLAIN, run_seed=1)


def test_divergence_is_reported() -> None:
    model, (x, y) = mlp(), toy()
    with pytest.raises(NotFinite, match="after 3 steps"):
        train(model, Task(0, 1, modules.snapshot(model)), x * 1e200, y, PLAIN, run_seed=1)


def test_the_global_generator_is_left_as_it_was() -> None:
    model, (x, y) = mlp(), toy()
    before = torch.get_rng_state()
    train(model, Task(0, 1, modules.snapshot(model)), x, y, PLAIN, run_seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_cannot_lie_channels_last_stays_as_it_is() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        viewing, other = Viewing().double(), nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = toy((2, 4, 4))
    delta = train(viewing, Task(0, 1, modules.snapshot(viewing)), x, y, PLAIN, run_seed=1).delta
    assert viewing.conv.weight.is_contiguous() and float(delta["conv.weight"].norm()) > 0
    layout.settle(other, x)
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_fused_steps_see_gradients_laid_out_as_their_parameters(name: str) -> None:
    """torch's fused steps ignore strides: a transposed gradient would move the wrong weights."""
    section = {"name": name, "lr": 0.1, **({"momentum": 0.9} if name == "sgd" else {})}
    weights = [nn.Parameter(torch.zeros(3, 4)) for _ in range(2)]
    gradient = torch.arange(12.0).view(3, 4)
    for weight, given in zip(weights, (gradient, gradient.t().contiguous().t()), strict=True):
        weight.grad = optimizers.aligned(given, weight)
        optimizers.build(section, [weight]).step()
    assert torch.equal(weights[0], weights[1]) and float(weights[0].detach().abs().sum()) > 0


@pytest.mark.parametrize("size", [1, 2, 6, 7, 99, None])
@pytest.mark.parametrize(("epochs", "steps", "own_steps"), [(1, None, None), (2, 1, None), (1, 2, None), (1, 5, 1)])
def test_examples_that_no_step_sees_are_not_needed(
    size: int | None, epochs: int, steps: int | None, own_steps: int | None
) -> None:
    model, (x, y) = mlp(), toy(size=20)
    owned = np.array([3, 19, 4, 0, 7, 11, 12])
    settings = LocalSettings(epochs, steps, size, {"name": "sgd", "lr": 0.1}, None)
    task = Task(2, 4, modules.snapshot(model), num_steps=own_steps)
    whole = train(model, task, x[owned], y[owned], settings, run_seed=9)
    rows, chosen = needed(owned, settings, task, 9)
    part = train(model, task, x[rows], y[rows], settings, run_seed=9, chosen=chosen)
    assert (part.loss, part.num_steps) == (whole.loss, whole.num_steps)
    assert all(torch.equal(part.delta[name], whole.delta[name]) for name in whole.delta)
    seen = whole.num_steps * (size or 7)
    assert len(rows) == min(seen, 7) and (chosen is None) == (seen >= 7)
