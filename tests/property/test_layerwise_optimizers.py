"""LAMB and LARS against their formulas written plainly, whole and cut up, in float64."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from strategies.optimizers import Lamb, Lars, Piece
from strategies.optimizers.layerwise import Layerwise
from trainers import optimizers

SHAPES = {"body.weight": (5, 3), "body.bias": (5,), "norm.weight": (7,), "head.weight": (2, 4, 2), "scale": ()}


def tensors(seed: int, scale: float = 1.0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {n: scale * torch.randn(s, generator=random, dtype=torch.float64) for n, s in shapes.items()}


def parameters(seed: int = 0, scale: float = 1.0) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(tensor) for name, tensor in tensors(seed, scale).items()}


def train(made: dict[str, nn.Parameter], optimizer: Layerwise, steps: int = 5, scale: float = 1.0) -> dict[str, Tensor]:
    for step in range(steps):
        for name, gradient in tensors(100 + step, scale).items():
            made[name].grad = gradient
        optimizer.step()
    return {name: parameter.detach() for name, parameter in made.items()}


def plain_lamb(
    w: Tensor, gradients: Sequence[Tensor], lr: float, decay: float, adapts: bool, clip: tuple[float, float] | None
) -> Tensor:
    m = v = torch.zeros_like(w)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        r = (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-6)
        u = r + decay * w
        phi = float(w.norm()) if clip is None else min(max(float(w.norm()), clip[0]), clip[1])
        ratio = phi / float(u.norm()) if adapts and phi > 0 and u.norm() > 0 else 1.0
        w = w - lr * ratio * u
    return w


def plain_lars(w: Tensor, gradients: Sequence[Tensor], lr: float, decay: float, adapts: bool) -> Tensor:
    v = torch.zeros_like(w)
    for g in gradients:
        rate = 0.02 * w.norm() / (g.norm() + decay * w.norm()) if adapts else 1.0
        v = 0.9 * v + lr * rate * (g + decay * w)
        w = w - v
    return w


@pytest.mark.parametrize("clip", [None, (0.5, 2.0)])
@pytest.mark.parametrize("exclude", ["vectors", None, r"bias|norm", r"^head"])
def test_lamb_is_its_algorithm(exclude: str | None, clip: tuple[float, float] | None) -> None:
    made = parameters()
    before = {name: parameter.detach().clone() for name, parameter in made.items()}
    got = train(made, Lamb(made.items(), lr=0.1, weight_decay=0.3, exclude=exclude, clip=clip))
    excluded = {
        "vectors": {"body.bias", "norm.weight", "scale"}, None: set(), r"bias|norm": {"body.bias", "norm.weight"},
        r"^head": {"head.weight"},
    }[exclude]  # fmt: skip
    for name, w in before.items():
        gradients = [tensors(100 + step)[name] for step in range(5)]
        want = plain_lamb(w, gradients, 0.1, 0.0 if name in excluded else 0.3, name not in excluded, clip)
        torch.testing.assert_close(got[name], want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_is_its_algorithm(decay: float) -> None:
    made = parameters()
    before = {name: parameter.detach().clone() for name, parameter in made.items()}
    got = train(made, Lars(made.items(), lr=0.1, weight_decay=decay, trust=0.02))
    for name, w in before.items():
        gradients = [tensors(100 + step)[name] for step in range(5)]
        matrix = w.dim() > 1
        want = plain_lars(w, gradients, 0.1, decay if matrix else 0.0, matrix)
        torch.testing.assert_close(got[name], want, rtol=1e-12, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 9999), scale=st.floats(1e-3, 1e3), decay=st.sampled_from([0.0, 0.01, 1.0]))
def test_a_step_of_lamb_is_as_long_as_the_rate_times_the_weights(seed: int, scale: float, decay: float) -> None:
    made = parameters(seed, scale)
    before = {name: parameter.detach().clone() for name, parameter in made.items()}
    after = train(made, Lamb(made.items(), lr=0.02, weight_decay=decay, exclude=None), steps=1)
    for name, w in before.items():
        assert math.isclose(float((after[name] - w).norm()), 0.02 * float(w.norm()), rel_tol=1e-7), name


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_lamb_does_not_see_the_scale_of_gradients(scale: float) -> None:
    plain, scaled = parameters(), parameters()
    want = train(plain, Lamb(plain.items(), lr=0.1, weight_decay=0.3, eps=1e-14))
    got = train(scaled, Lamb(scaled.items(), lr=0.1, weight_decay=0.3, eps=1e-14), scale=scale)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-9, atol=1e-10)


def test_the_first_step_of_lars_does_not_see_the_scale_of_gradients() -> None:
    plain, scaled = parameters(), parameters()
    want = train(plain, Lars(plain.items(), lr=1.0, trust=0.01, exclude=None), steps=1)
    got = train(scaled, Lars(scaled.items(), lr=1.0, trust=0.01, exclude=None), steps=1, scale=1e5)
    for name, w in tensors(0).items():
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-13)
        assert math.isclose(float((got[name] - w).norm()), 0.01 * float(w.norm()), rel_tol=1e-7), name


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_tensors_and_gradients_of_zeros_make_no_nan(kind: type[Layerwise]) -> None:
    zero = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    still = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    optimizer = kind([zero, still], lr=0.5, weight_decay=0.0)
    zero.grad, still.grad = torch.full_like(zero, 2.0), torch.zeros_like(still)
    optimizer.step()
    moved = -0.5 if kind is Lamb else -1.0  # the ratio is 1: by r = 1, or by g = 2
    torch.testing.assert_close(zero.detach(), torch.full_like(zero, moved), rtol=1e-6, atol=0)
    assert torch.equal(still, torch.ones_like(still))


def test_with_ratio_one_lamb_is_adamw() -> None:
    own, torchs = parameters(), parameters()
    arguments: Any = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3}
    got = train(own, Lamb(own.items(), exclude=None, exclude_adaptation=".*", **arguments), steps=9)
    want = train(torchs, torch.optim.AdamW(torchs.values(), **arguments), steps=9)  # type: ignore[arg-type]
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-13)


# ------------------------------------------------------------------------------------------------------- cut up


class Ranks:
    """Optimizers of several ranks whose flat tensors together have all elements; they step in turns."""

    def __init__(self, kind: type[Layerwise], edges: Sequence[int], padding: int, **arguments: Any) -> None:
        whole = tensors(0)
        spans, end = [], 0
        for name, tensor in whole.items():
            spans.append((name, tuple(tensor.shape), end, end + tensor.numel()))
            end += tensor.numel()
        self.values = torch.cat([tensor.flatten() for tensor in whole.values()])
        bounds = [0, *edges, end]
        self.flats, self.pieces, self.optimizers = [], [], []
        for left, right in itertools.pairwise(bounds):
            flat = nn.Parameter(torch.cat([self.values[left:right], torch.full((padding,), 7.0, dtype=torch.float64)]))
            pieces = [
                Piece(name, shape, max(left, a) - a, max(left, a) - left, min(right, b) - max(left, a))
                for name, shape, a, b in spans
                if max(left, a) < min(right, b)
            ]
            optimizer = kind([flat], **arguments)
            optimizer.shard({flat: pieces}, list(whole), self.total)
            self.flats.append(flat)
            self.pieces.append((left, right))
            self.optimizers.append(optimizer)
        self.padding = padding

    def total(self, squares: Tensor) -> Tensor:
        self.asked.append(squares.clone())
        return squares if self.sum is None else self.sum

    def step(self, gradients: Tensor, *, sums: bool = True) -> None:
        """Step all ranks twice: on copies to hear their squares, then with the sum, as an all-reduce would give it."""
        for flat, (left, right) in zip(self.flats, self.pieces, strict=True):
            flat.grad = torch.cat([gradients[left:right], torch.zeros(self.padding, dtype=torch.float64)])
        self.sum, self.asked = None, []
        kept = [
            (flat.detach().clone(), self._copied(o, flat)) for o, flat in zip(self.optimizers, self.flats, strict=True)
        ]
        for optimizer in self.optimizers:
            optimizer.step()
        if not sums:
            return
        self.sum = torch.stack(self.asked).sum(dim=0)
        for optimizer, flat, (values, state) in zip(self.optimizers, self.flats, kept, strict=True):
            with torch.no_grad():
                flat.copy_(values)
            optimizer.state[flat] = state
            optimizer.step()

    def _copied(self, optimizer: Layerwise, flat: nn.Parameter) -> dict[str, Tensor]:
        return {slot: value.clone() for slot, value in optimizer.state[flat].items()}

    def whole(self) -> Tensor:
        held = [flat.detach()[: right - left] for flat, (left, right) in zip(self.flats, self.pieces, strict=True)]
        return torch.cat(held)


NUM_ELEMENTS = sum(math.prod(shape) for shape in SHAPES.values())


@settings(max_examples=30, deadline=None)
@given(
    edges=st.lists(st.integers(0, NUM_ELEMENTS), max_size=5).map(sorted),
    padding=st.integers(0, 3),
    kind=st.sampled_from([Lamb, Lars]),
    exclude=st.sampled_from(["vectors", None, "bias"]),
)
def test_flat_tensors_cut_anywhere_make_the_same_steps(
    edges: list[int], padding: int, kind: type[Layerwise], exclude: str | None
) -> None:
    arguments: Any = {"lr": 0.1, "weight_decay": 0.2, "exclude": exclude}
    made = parameters()
    want = train(made, kind(made.items(), **arguments), steps=3)
    ranks = Ranks(kind, edges, padding, **arguments)
    for step in range(3):
        ranks.step(torch.cat([gradient.flatten() for gradient in tensors(100 + step).values()]))
    together = torch.cat([tensor.flatten() for tensor in want.values()])
    torch.testing.assert_close(ranks.whole(), together, rtol=1e-12, atol=1e-13)
    for flat in ranks.flats:
        assert (flat.detach()[len(flat) - padding :] == 7).all(), "padding moved"


def test_norms_of_each_shard_alone_would_be_another_algorithm() -> None:
    # The trap of the spec: where halves of a tensor differ in scale, norms of the shards instead of the tensor's
    # change the step: by 43 % where one half is 2.75 times as large.
    shape = {"weight": (2, 64)}
    random = torch.Generator().manual_seed(1)
    w = torch.randn(2, 64, generator=random, dtype=torch.float64) * torch.tensor([[1.0], [2.75]])
    g = torch.randn(2, 64, generator=random, dtype=torch.float64)
    moved = []
    for sums in (True, False):
        flats = [nn.Parameter(half.clone()) for half in w]
        asked: list[Tensor] = []

        def total(squares: Tensor, asked: list[Tensor] = asked, sums: bool = sums) -> Tensor:
            whole = torch.stack([(w**2).sum(), torch.tensor(128.0, dtype=torch.float64)]).view(2, 1)
            asked.append(squares)
            return whole if sums else squares

        for index, flat in enumerate(flats):
            optimizer = Lamb([flat], lr=0.1, weight_decay=0.0, eps=0.0)
            optimizer.shard({flat: [Piece("weight", shape["weight"], 64 * index, 0, 64)]}, ["weight"], total)
            flat.grad = g[index].clone()
            optimizer.step()
        assert torch.allclose(sum(asked), torch.stack([(w**2).sum(), torch.tensor(128.0)]).view(2, 1))
        moved.append(torch.stack([flat.detach() for flat in flats]) - w)
    right, wrong = moved
    assert math.isclose(float(right.norm()), 0.1 * float(w.norm()), rel_tol=1e-7)
    away = float((right - wrong).norm() / right.norm())
    assert 0.40 < away < 0.46, away


@pytest.mark.parametrize("kind", [Lamb, Lars])
def test_a_piece_may_be_any_part_of_a_tensor_in_any_layout_if_it_is_alone(kind: type[Layerwise]) -> None:
    # Columns of a matrix are no run of its elements; norms need no order, so `start` may then be anything.
    whole, gradient = (tensors(seed, shapes={"w": (6, 4)})["w"] for seed in (0, 1))
    one = nn.Parameter(whole.clone())
    one.grad = gradient.clone()
    kind([one], lr=0.1, weight_decay=0.1).step()
    squares = torch.zeros(2, 1, dtype=torch.float64)
    for summing in (True, False):
        halves = [nn.Parameter(half) for half in whole.clone().chunk(2, dim=1)]
        for half, own in zip(halves, gradient.chunk(2, dim=1), strict=True):
            half.grad = own.contiguous()

            def total(own: Tensor, summing: bool = summing) -> Tensor:
                return squares.add_(own).clone() if summing else squares

            optimizer = kind([half], lr=0.1, weight_decay=0.1)
            optimizer.shard({half: [Piece("w", (6, 4), 0, 0, 12)]}, ["w"], total)
            optimizer.step()
    torch.testing.assert_close(torch.cat([h.detach() for h in halves], dim=1), one.detach(), rtol=1e-12, atol=1e-13)


def test_every_step_of_a_cut_optimizer_sums_once_whatever_it_has_gradients_for() -> None:
    flat, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    calls: list[Tensor] = []
    optimizer = Lamb([{"params": [flat]}, {"params": [other], "lr": 0.1}])
    pieces = {flat: [Piece("a", (2, 4), 4, 0, 4)], other: [Piece("b", (2, 4), 0, 0, 4)]}
    optimizer.shard(pieces, ["a", "b"], lambda squares: calls.append(squares) or squares)  # type: ignore[func-returns-value]
    optimizer.step()
    flat.grad, other.grad = torch.ones(4), torch.ones(4)
    optimizer.step()
    assert [call.shape for call in calls] == [(2, 2), (2, 2)] and not calls[0].any() and calls[1].all()


def test_pieces_that_do_not_fit_are_refused() -> None:
    flat = nn.Parameter(torch.ones(4))
    optimizer = Lamb([flat])
    for pieces, told in (
        ([Piece("a", (3,), 1, 0, 3)], "reaches beyond the 3 elements of a"),
        ([Piece("a", (9,), 0, 0, 3), Piece("b", (9,), 0, 2, 1)], "lies over another one"),
        ([Piece("a", (9,), 0, 0, 5)], "beyond the flat tensor's 4 elements"),
        ([Piece("c", (9,), 0, 0, 4)], "piece of 'c', which is not among the 2 names"),
    ):
        with pytest.raises(ValueError, match=told):
            optimizer.shard({flat: pieces}, ["a", "b"], lambda squares: squares)
    optimizer.shard({}, ["a"], lambda squares: squares)
    flat.grad = torch.ones(4)
    with pytest.raises(ValueError, match="say in shard"):
        optimizer.step()


# ------------------------------------------------------------------------------------------- as a torch optimizer


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"lr": -1.0}, "lr -1.0"), ({"betas": [0.9]}, "two numbers"), ({"betas": [0.9, 1.0]}, "below 1"),
        ({"clip": [2.0, 1.0]}, "low <= high"), ({"exclude": "("}, "nor a regular expression"),
    ],
)  # fmt: skip
def test_lamb_refuses_arguments_out_of_range(arguments: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Lamb([nn.Parameter(torch.ones(2))], **arguments)


def test_a_pattern_needs_names() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match="parameters came without"):
        Lamb([weight], exclude="bias").step()


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_what_is_remembered_goes_on_in_a_fresh_optimizer(name: str) -> None:
    section = {"name": name, "lr": 0.1, "weight_decay": 0.1, "kwargs": {"exclude": "bias"}}
    straight = parameters()
    want = train(straight, optimizers.build(section, straight.items()), steps=5)
    made = parameters()
    first = optimizers.build(section, made.items())
    train(made, first, steps=2)
    memory = optimizers.remembered(first, made)
    second = optimizers.build(section, made.items())
    optimizers.remind(second, made, memory)
    for step in range(2, 5):
        for each, gradient in tensors(100 + step).items():
            made[each].grad = gradient
        second.step()
    assert all(torch.equal(made[each], want[each]) for each in want)


def test_memory_of_the_optimizers_is_known_to_plans() -> None:
    assert optimizers.copies({"name": "lamb", "lr": 0.1}, torch.float32) == 2
    assert optimizers.copies({"name": "lars", "lr": 0.1, "momentum": 0.9}, torch.float64) == 1


def test_channels_last_weights_with_gradients_laid_out_otherwise_move_alike() -> None:
    random = torch.Generator().manual_seed(0)
    values, gradient = (torch.randn(4, 3, 2, 2, generator=random) for _ in range(2))
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(values.clone().to(memory_format=layout))
        optimizer = Lamb([weight], lr=0.1)
        for _ in range(2):
            weight.grad = gradient.clone()
            optimizer.step()
        moved.append(weight.detach())
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_dtensors_on_two_processes_move_as_whole_tensors_do_with_one_sum_a_step(tmp_path: Path) -> None:
    script = Path(__file__).with_name("dtensor_optimizers.py")
    run = [sys.executable, str(script)]
    ranks = [
        subprocess.Popen([*run, str(rank), str(tmp_path / "store")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
