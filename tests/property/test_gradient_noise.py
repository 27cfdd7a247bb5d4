"""Noise and clipping of gradients: any part of a tensor draws what the whole tensor draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strategies.optimizers import Piece
from strategies.optimizers.gradient_noise import CHUNK, GradientNoise
from trainers.gradients import Shaping, Stepped

NOISE = GradientNoise(0.3, 0.55, seed=5)
WHOLE = NOISE.draw("body.weight", 0, 3 * CHUNK + 7, 4)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_noise_of_a_piece_is_the_slice_of_the_whole_tensors(data: st.DataObject) -> None:
    near = st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, len(WHOLE) - 1, len(WHOLE)])
    place = st.one_of(near, st.integers(0, len(WHOLE)))
    start, end = sorted((data.draw(place), data.draw(place)))
    assert torch.equal(NOISE.draw("body.weight", start, end - start, 4), WHOLE[start:end])


def test_noise_is_normal_with_a_variance_that_falls_as_published() -> None:
    for step in (0, 1, 99):
        drawn = NOISE.draw("w", 0, 200_000, step).double().numpy()
        variance = 0.3 / (1 + step) ** 0.55
        assert math.isclose(NOISE.deviation(step) ** 2, variance)
        assert abs(drawn.mean()) < 5 * math.sqrt(variance / len(drawn))
        assert math.isclose(drawn.var(), variance, rel_tol=0.02)
        assert math.isclose((drawn**4).mean(), 3 * variance**2, rel_tol=0.05)


def test_names_steps_and_seeds_draw_different_numbers() -> None:
    others = [
        NOISE.draw("body.bias", 0, 1000, 4), NOISE.draw("body.weight", 0, 1000, 5),
        NOISE._replace(seed=6).draw("body.weight", 0, 1000, 4), NOISE.draw("body.weight", CHUNK, 1000, 4),
    ]  # fmt: skip
    for other in others:
        assert abs(float(np.corrcoef(other.numpy(), WHOLE[:1000].numpy())[0, 1])) < 0.15


def test_whole_gradients_and_pieces_of_flat_ones_are_shaped_alike() -> None:
    shaping = Shaping.of(0.5, {"eta": 0.01, "gamma": 0.55}, seed=3)
    random = torch.Generator().manual_seed(0)
    one, two = torch.randn(5, 4, generator=random), torch.randn(9, generator=random)
    flat = torch.cat([one.flatten(), two, torch.full((2,), 9.0)])
    halves = [flat[:13].clone(), flat[13:].clone()]
    own = [
        [Piece("one", (5, 4), 0, 0, 13)],
        [Piece("one", (5, 4), 13, 0, 7), Piece("two", (9,), 0, 7, 9)],
    ]
    for half, pieces in zip(halves, own, strict=True):
        shaping.apply_to_pieces(half, pieces, 2)
    before = one.clone()
    shaping.apply([("one", one), ("two", two), ("one", one)], 2)
    assert torch.equal(torch.cat(halves), torch.cat([one.flatten(), two, torch.full((2,), 9.0)]))
    noise = NOISE._replace(eta=0.01, seed=3).draw("one", 0, 20, 1).view(5, 4)
    assert torch.equal(one, before.clamp(-0.5, 0.5) + noise)


def test_a_gradient_that_is_not_contiguous_gets_the_same_noise_by_its_indices() -> None:
    shaping = Shaping.of(None, {"eta": 1.0, "gamma": 0.0}, seed=3)
    plain, transposed = torch.zeros(4, 3), torch.zeros(3, 4).t()
    shaping.apply([("w", plain)], 1)
    shaping.apply([("w", transposed)], 1)
    assert torch.equal(plain, transposed) and plain.any()


@pytest.mark.parametrize("shaping", [Shaping(), Shaping.of(None, {"eta": 1.0, "gamma": 0.55}, seed=3)])
def test_an_optimizer_that_others_step_counts_its_steps_on(shaping: Shaping) -> None:
    weight = nn.Parameter(torch.zeros(6))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    stepped = Stepped(shaping, optimizer, [("w", weight)])
    stepped.step = 7
    for _ in range(2):
        weight.grad = torch.zeros(6)
        optimizer.step()
    want = torch.zeros(6)
    if shaping.noise is not None:
        want = -shaping.noise.draw("w", 0, 6, 6) - shaping.noise.draw("w", 0, 6, 7)
    assert torch.equal(weight.detach(), want)
