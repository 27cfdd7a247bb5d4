"""QSGD, TernGrad, signSGD and the casts by hand."""

from __future__ import annotations

import pytest
import torch

from strategies.compression import BF16, FP16, QSGD, Codec, Int8, SignSGD, TernGrad


def through(codec: Codec, tensor: torch.Tensor) -> torch.Tensor:
    return codec.decode(codec.encode({"w": tensor}))["w"]


def test_qsgd_rounds_to_the_two_nearest_levels() -> None:
    """||v|| = 5; with s = 5 levels are whole numbers, so 3, 4 are exact; with s = 2 they are 0, 2.5, 5."""
    vector = torch.tensor([3.0, -4.0])
    assert through(QSGD(levels=5), vector).tolist() == [3, -4]
    seen = {tuple(through(QSGD(levels=2).seeded(seed), vector).tolist()) for seed in range(60)}
    assert seen == {(2.5, -2.5), (2.5, -5), (5, -2.5), (5, -5)}


def test_qsgd_has_a_norm_for_each_bucket() -> None:
    vector = torch.tensor([3.0, 4.0, 30.0, -40.0, 0.5])
    assert through(QSGD(levels=5, bucket=2), vector).tolist() == pytest.approx([3, 4, 30, -40, 0.5], rel=1e-6)
    assert through(QSGD(levels=4, bucket=2, norm="max"), torch.tensor([1.0, 4.0, -2.0])).tolist() == [1, 4, -2]


def test_qsgd_needs_few_bits_where_most_levels_are_zero() -> None:
    tree = {"w": torch.randn(51_200, generator=torch.Generator().manual_seed(0))}
    bits = 8 * len(QSGD(levels=1, bucket=512).bind(tree).encode(tree)) / 51_200
    assert bits < 1.2


def test_qsgd_contracts_when_buckets_are_smaller_than_levels_squared() -> None:
    assert QSGD(levels=15, bucket=224).contractive
    assert not QSGD(levels=15, bucket=225).contractive


def test_terngrad_sends_the_maximum_or_nothing() -> None:
    vector = torch.tensor([2.0, -1.0, 0.0])
    seen = {tuple(through(TernGrad().seeded(seed), vector).tolist()) for seed in range(60)}
    assert seen == {(2, 0, 0), (2, -2, 0)}


def test_terngrad_clips_at_standard_deviations() -> None:
    """99 zeros and a 10: deviation .995, so with clip=2 the largest is 1.99."""
    vector = torch.zeros(100)
    vector[3] = 10
    assert float(through(TernGrad(clip=2), vector).max()) == pytest.approx(1.98997, abs=1e-4)


def test_signsgd_sends_signs_and_the_mean_magnitude() -> None:
    assert through(SignSGD(), torch.tensor([1.0, -2.0, 0.0, 5.0])).tolist() == [2, -2, 2, 2]


def test_int8_has_254_steps_between_its_extremes() -> None:
    assert through(Int8(), torch.tensor([127.0, -63.4, 0.6, 0.0])).tolist() == [127, -63, 1, 0]
    seen = {float(through(Int8(stochastic=True).seeded(seed), torch.tensor([127.0, 0.5]))[1]) for seed in range(40)}
    assert seen == {0, 1}


def test_casts_round_to_even_or_at_random() -> None:
    near = torch.tensor([1 + 2.0**-12, -1 - 2.0**-12, 2.0**-26, 0.0])
    assert through(FP16(), near).tolist() == [1, -1, 0, 0]
    seen = torch.stack([through(FP16(stochastic=True).seeded(seed), near) for seed in range(200)])
    assert set(seen[:, 0].tolist()) == {1, 1 + 2.0**-10}
    assert set(seen[:, 1].tolist()) == {-1, -1 - 2.0**-10}
    assert set(seen[:, 2].tolist()) == {0, 2.0**-24}
    assert set(seen[:, 3].tolist()) == {0}
    assert through(BF16(), torch.tensor([1 + 2.0**-9])).tolist() == [1]


def test_a_number_beyond_half_precision_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'w' reaches 1e\+05, beyond fp16's largest number 6.55e\+04"):
        FP16().encode({"w": torch.tensor([1e5])})
    assert through(BF16(), torch.tensor([1e38]))[0] > 9.9e37


@pytest.mark.parametrize("codec", [SignSGD(), TernGrad(), QSGD(), Int8()])
def test_doubles_beyond_single_precision_are_refused_by_name(codec: Codec) -> None:
    with pytest.raises(ValueError, match="'w' reaches 1e\\+300, beyond float32's range"):
        codec.encode({"w": torch.tensor([1e300, 1.0], dtype=torch.float64)})


def test_half_precision_stays_within_its_range() -> None:
    """bfloat16 rounds 65504 up to 65536, which float16 cannot hold."""
    assert through(BF16(), torch.tensor([65504.0], dtype=torch.float16)).tolist() == [65504]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: QSGD(levels=0), "levels=0: 1 to 127"),
        (lambda: QSGD(levels=128), "1 to 127"),
        (lambda: QSGD(bucket=0), "bucket=0"),
        (lambda: QSGD(norm="l1"), "l2 or max"),
        (lambda: TernGrad(clip=0), "clip=0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
