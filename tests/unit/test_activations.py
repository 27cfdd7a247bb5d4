"""Tensors in 8 bits: groups, ranges, rounding, and the errors that they make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.activations import (
    LEVELS,
    Groups,
    Range,
    Running,
    decode,
    encode,
    from_bits,
    groups_of,
    own_range,
    to_bits,
)  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(x: torch.Tensor) -> Groups:
    return groups_of(x.shape, 1)


def test_groups_are_heads_or_stretches_of_channels() -> None:
    assert groups_of((4, 3, 5, 7), "heads", heads=3) == Groups((4, 3, 5, 7), 1, 3)  # attention
    assert groups_of((12, 5, 7), 8, batch=4) == Groups((4, 3, 5, 7), 1, 3)  # the same, flattened
    assert groups_of((4, 5, 24), 8, batch=4) == Groups((4, 5, 24), 2, 8)  # tokens
    assert groups_of((20, 24), "heads", batch=4, heads=3) == Groups((20, 24), 1, 3)
    assert groups_of((4, 16, 6, 6), "channels") == Groups((4, 16, 6, 6), 1, 16)  # images
    assert groups_of((4, 24), "heads").number == 1  # a layer without heads
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        groups_of((5,), 8)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    asked=st.one_of(st.integers(1, 12), st.just("channels")),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
    transposed=st.booleans(),
)
def test_in_its_own_range_a_number_is_off_by_less_than_a_step(shape, asked, dtype, seed, transposed) -> None:
    x = drawn(*shape, seed=seed).to(dtype)
    x = x.transpose(0, -1) if transposed else x
    groups = groups_of(x.shape, asked)
    limits = own_range(x, groups)
    step = groups.spread(limits.alpha / LEVELS)
    for rounding in (seed, None):
        back = decode(encode(x, groups, limits, rounding))
        assert back.dtype == dtype and back.shape == x.shape
        slack = 0.02 if dtype == torch.bfloat16 else 1e-5
        error = (back.view(groups.view) - x.view(groups.view)).abs().double()
        assert bool((error <= (1 if rounding is not None else 0.5) * step * 1.001 + slack).all())


def test_each_group_has_the_range_of_its_own_values() -> None:
    x = drawn(6, 10)
    found = own_range(x, Groups((6, 10), 1, 4))  # of 3, 3, 2 and 2 channels
    parts = torch.split(x, [3, 3, 2, 2], dim=1)
    assert torch.equal(found.beta, torch.stack([part.min() for part in parts]))
    assert torch.equal(found.alpha, torch.stack([part.max() - part.min() for part in parts]))


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    x, draws = torch.rand(40, 25, generator=torch.Generator().manual_seed(1)), 1000
    groups = whole(x)
    limits = Range(torch.ones(1), torch.zeros(1))
    mean = torch.stack([decode(encode(x, groups, limits, seed)) for seed in range(draws)]).mean(0)
    off = (mean - x) * LEVELS  # in steps; one draw has a variance of at most a quarter
    assert float(off.abs().max()) < 5 * 0.5 / draws**0.5 + 1 / 512
    assert abs(float(off.mean())) < 5 * 0.5 / (draws * x.numel()) ** 0.5 + 1 / 512
    nearest = decode(encode(x, groups, limits, None))
    assert float((nearest - x).square().mean()) < float((decode(encode(x, groups, limits, 0)) - x).square().mean())


def test_what_lies_outside_a_range_is_cut_at_both_ends() -> None:
    """The authors' kernel cuts at the lower end only: 270 of 255 levels wraps round to 14."""
    x = torch.tensor([[-3.0, 0.0, 100.0, 255.0, 270.0, 1e30]])
    for seed in (None, 0, 1, 2):
        back = decode(encode(x, whole(x), Range(torch.tensor([255.0]), torch.tensor([0.0])), seed))
        assert back.tolist() == [[0.0, 0.0, 100.0, 255.0, 255.0, 255.0]]


def test_a_group_of_equal_values_comes_back_exactly() -> None:
    x = torch.cat([torch.full((7, 2), 3.25), drawn(7, 2)], dim=1)
    back = decode(encode(x, groups_of(x.shape, 2), own_range(x, groups_of(x.shape, 2)), 5))
    assert torch.equal(back[:, :2], x[:, :2])


def test_what_was_decoded_is_encoded_to_the_same_levels_again() -> None:
    x = drawn(300, 16)
    groups = groups_of(x.shape, 8)
    limits = own_range(x, groups)
    first = encode(x, groups, limits, 3)
    assert torch.equal(encode(decode(first), groups, limits, 4).levels, first.levels)


def test_the_layout_in_memory_moves_no_level() -> None:
    x = drawn(3, 8, 5, 6)
    groups = groups_of(x.shape, 8)
    want = encode(x, groups, own_range(x, groups), 1)
    got = encode(x.to(memory_format=torch.channels_last), groups, own_range(x, groups), 1)
    assert torch.equal(want.levels, got.levels)
    assert decode(got).is_contiguous(memory_format=torch.channels_last)


def test_large_tensors_are_encoded_in_blocks_like_small_ones() -> None:
    x = drawn(1200, 500)
    groups = groups_of(x.shape, 8)
    limits = own_range(x, groups)
    nearest = ((x - groups.spread(limits.beta)) * (LEVELS / groups.spread(limits.alpha))).round()
    found = encode(x, groups, limits, None).levels
    assert float((found != nearest).float().mean()) < 1e-4  # of ties, and of rounding before rounding


def test_errors_fall_with_the_number_of_groups() -> None:
    x = drawn(64, 96) * torch.linspace(0.1, 3, 96)
    errors = []
    for asked in (1, 4, 16, 96):
        groups = groups_of(x.shape, asked)
        errors.append(float((decode(encode(x, groups, own_range(x, groups), 0)) - x).square().mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 2


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000])
def test_masks_are_kept_as_bits(size: int) -> None:
    mask = drawn(size) > 0
    packed = to_bits(mask)
    assert packed.numel() == -(-size // 8) and torch.equal(from_bits(packed, mask.shape), mask)


def test_remembered_ranges_move_by_a_tenth_of_a_step_s_mean() -> None:
    def limits(width: float) -> Range:
        return Range(torch.tensor([width]), torch.tensor([-width]))

    running = Running()
    assert float(running.use("0/1", (0, 1), limits(4)).alpha) == 4  # the first step has nothing to remember
    assert float(running.use("0/1", (0, 0), limits(2)).alpha) == 2
    running.commit()
    assert float(running.use("0/1", (0, 0), limits(13)).alpha) == pytest.approx(0.9 * 3 + 0.1 * 13)
    assert float(running.use("0/1", (0, 1), limits(3)).alpha) == pytest.approx(3)
    running.commit()
    alpha, beta = running.export()
    assert float(alpha["0/1"]) == pytest.approx(0.9 * 3 + 0.1 * 8) and float(beta["0/1"]) == -float(alpha["0/1"])
