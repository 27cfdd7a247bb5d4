"""Units, adapters and balanced cuts."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from strategies.local import rule, units
from strategies.local.auxiliary import fresh, network
from strategies.local.base import drawing, evaluating
from strategies.local.cuts import balanced_ends, cheapest_ends, multiplications
from strategies.local.units import shapes
from strategies.pipeline import balance
from trainers.models import build


def kinds(found) -> list[list[str]]:
    return [[type(part).__name__ for part in (unit if isinstance(unit, nn.Sequential) else [unit])] for unit in found]


def test_a_residual_networks_units_are_its_stem_its_blocks_and_its_head() -> None:
    model = build({"name": "resnet", "depth": 32}, input_shape=(3, 8, 8), num_classes=10, seed=0)
    found = units(model)
    assert [kind for (kind,) in kinds(found)] == ["Stem", *["Block"] * 15, "Head"]
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(nn.Sequential(*found)(x), model(x))
    assert {id(p) for unit in found for p in unit.parameters()} == {id(p) for p in model.parameters()}


def test_a_sequentials_units_begin_at_layers_with_weights() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3),
    )  # fmt: skip
    assert kinds(units(model)) == [
        ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"],
        ["Conv2d", "ReLU"],
        ["Flatten", "Linear", "ReLU", "Dropout"],
        ["Linear"],
    ]
    assert kinds(units(nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2), nn.Flatten()))) == [
        ["Flatten", "Linear"],
        ["Linear", "Flatten"],
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def pipeline_layers(self) -> list[nn.Module]:
        return [self.layer, self.layer]


class Stashing(nn.Identity):
    stashes = ("skip",)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Bilinear(2, 2, 2), "Bilinear does not say what its units are; give it a method pipeline_layers"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "at least 2 units, the last of them the head; got 1"),
        (Tied(), r"unit 0 \(Linear\) and unit 1 \(Linear\) share a parameter"),
        ([Stashing(), nn.Linear(2, 2)], r"unit 0 \(Stashing\) has a skip"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(model, said) -> None:
    with pytest.raises(ValueError, match=said):
        units(model)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([nn.Linear(4, 3), nn.Linear(2, 3)], r"unit 1 \(Linear\) was given \[1, 3\] and raised"),
        (
            [nn.Linear(4, 3), nn.Linear(3, 5)],
            r"unit 1 \(Linear\), the head, gives \[5\] for an example, expected \[3\]",
        ),
        ([nn.Linear(4, 3), nn.LSTM(3, 3)], r"unit 1 \(LSTM\) returned tuple"),
    ],
)
def test_units_that_do_not_fit_are_named(found, said) -> None:
    with pytest.raises(ValueError, match=said):
        rule("dgl").modules(found, num_classes=3, input_shape=(4,), seed=0)


def ready(found, input_shape, name="auglocal", **arguments):
    return rule(name, **arguments).modules(found, num_classes=3, input_shape=input_shape, seed=0)


def test_units_of_any_kind_are_copied_behind_adapters() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(54, 5), nn.Tanh(), nn.Linear(5, 3),
    ).double()  # fmt: skip
    first, second, _ = ready(units(model), (1, 8, 8), depth=2, decay=0.0, modules="each")
    assert kinds(first.auxiliary) == [["Conv2d", "ReLU"], ["Flatten", "Linear", "Tanh"], ["Linear"]]
    adapted = ready(units(model), (1, 8, 8), depth=1, modules="each")[0].auxiliary
    pool, conv = adapted[0][0], adapted[0][1]
    assert (pool.output_size, conv.weight.shape[:2]) == ((3, 3), (6, 4))
    assert {p.dtype for p in first.auxiliary.parameters()} == {torch.float64}
    assert first.auxiliary(first.units(torch.randn(2, 1, 8, 8).double())).shape == (2, 3)
    assert not {id(p) for p in second.auxiliary.parameters()} & {id(p) for p in model.parameters()}


def test_copies_are_drawn_afresh_and_trained_even_where_the_unit_is_frozen() -> None:
    unit = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).eval()
    unit[1].running_mean.fill_(3.0)
    with drawing(1):
        made = fresh(unit, "unit 0")
    assert not torch.equal(made[0].weight, unit[0].weight)
    assert made[1].running_mean.abs().sum() == 0
    assert all(p.requires_grad for p in made.parameters()) and made.training


def test_a_unit_that_cannot_draw_its_weights_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.weight * x

    found = [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Scale()), nn.Linear(4, 3)]
    with pytest.raises(ValueError, match=r"unit 1 \(Sequential\): 1 \(Scale\) has weights and no reset_parameters"):
        ready(found, (4,), depth=1, modules="each")


def test_no_adapter_makes_a_sequence_of_a_vector() -> None:
    found = [nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 3), nn.Flatten(), nn.Linear(6, 3)]
    with pytest.raises(ValueError, match=r"no adapter makes \[2, 3\] of \[6\]"):
        ready(found, (4,), depth=1, modules="each", decay=0.0)


def test_a_transformer_block_is_a_unit_like_any_other() -> None:
    blocks = [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(40, 3))
    modules = ready([nn.Embedding(11, 8), *blocks, head], (5,), depth=1, modules="each")
    tokens, y = torch.arange(20).reshape(4, 5) % 11, torch.tensor([0, 1, 2, 0])
    carry = {"h": tokens}
    for module in modules:
        carry = module(carry, y, 1)
        assert module.learn() > 0
    assert carry["h"].shape == (4, 3)


def test_vggs_networks_pool_once_where_they_change_the_width() -> None:
    model = build(
        {"name": "vgg", "depth": 13, "norm": "batch", "width": 4}, input_shape=(3, 32, 32), num_classes=3, seed=0
    )
    found = units(model)
    made = shapes(found, (3, 32, 32))
    assert [shape[0] for shape in made[:-1]] == [4, 4, 8, 8, 16, 16, 32, 32, 32, 32]
    net = network(found, made, 0, (5, 7, 9), 3, norm=False)
    assert [unit.pool is not None for unit in net[:3]] == [True, True, False]
    assert [type(part).__name__ for part in net[3]][:3] == ["Flatten", "AdaptiveAvgPool1d", "Linear"]
    assert net(torch.randn(2, *made[0])).shape == (2, 3)
    assert len(ready(found, (3, 32, 32), depth=3)) == 7


def test_multiplications_of_convolutions_and_maps_are_counted_to_the_number() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 2, 2), nn.Flatten(), nn.Linear(98, 5))
    assert multiplications(model, torch.zeros(1, 4, 8, 8)) == 6 * 36 * 2 * 9 + 6 * 36 * 2 * 4 + 98 * 5
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert multiplications(attention, torch.zeros(1, 5, 8)) == 5 * (3 * 64 + 64 + 2 * 8 * 16)


def every_cut(costs, added, num_modules) -> list[int]:
    def value(ends):
        bounds = [-1, *ends, len(costs) - 1]
        own = [sum(costs[bounds[k] + 1 : bounds[k + 1] + 1]) for k in range(num_modules)]
        own = [cost + (added(k, ends[k]) if k < num_modules - 1 else 0) for k, cost in enumerate(own)]
        return max(own), sum(cost**2 for cost in own), ends

    return list(min(map(value, combinations(range(len(costs) - 1), num_modules - 1)))[2])


@pytest.mark.parametrize("num_modules", [1, 2, 3, 5])
def test_cuts_are_the_best_of_all_and_those_of_a_pipeline_where_networks_cost_nothing(num_modules) -> None:
    generator = torch.Generator().manual_seed(num_modules)
    for _ in range(20):
        costs = torch.randint(0, 9, (8,), generator=generator).tolist()
        table = torch.randint(0, 9, (5, 8), generator=generator).tolist()
        found = cheapest_ends(costs, lambda k, end, table=table: table[k][end], num_modules)
        assert found == every_cut(costs, lambda k, end, table=table: table[k][end], num_modules)
        bounds = [-1, *cheapest_ends(costs, lambda k, end: 0, num_modules), 7]
        assert [b - a for a, b in pairwise(bounds)] == balance(costs, num_modules)


@pytest.mark.parametrize(
    ("depth", "num_modules", "ends", "extra", "speedup"),
    [
        (32, 2, [7], 0.12, 1.69),
        (32, 4, [3, 7, 10], 0.35, 2.64),
        (32, 8, [1, 3, 5, 7, 8, 10, 12], 0.82, 3.88),
        pytest.param(110, 2, [26], 0.03, 1.93, marks=pytest.mark.slow),
        pytest.param(110, 4, [13, 26, 39], 0.10, 3.58, marks=pytest.mark.slow),
        pytest.param(110, 8, [7, 14, 21, 27, 33, 40, 46], 0.23, 6.11, marks=pytest.mark.slow),
    ],
)
def test_one_network_a_worker_costs_little(depth, num_modules, ends, extra, speedup) -> None:
    section = {"name": "resnet", "depth": depth, "norm": "batch", "shortcut": "convolution"}
    model, x = build(section, input_shape=(3, 32, 32), num_classes=3, seed=0), torch.zeros(1, 3, 32, 32)
    whole, costs = multiplications(model, x), []
    modules = ready(units(model), (3, 32, 32), depth=2, modules=num_modules)
    assert [len(module.units) for module in modules[:-1]] == [b - a for a, b in zip([-1, *ends], ends, strict=False)]
    for module in modules:
        costs.append(multiplications(module.units, x))
        with evaluating(module):
            x = module.units(x)
            costs[-1] += multiplications(module.auxiliary, x) if module.auxiliary is not None else 0
    assert round(sum(costs) / whole - 1, 2) == extra
    assert round(whole / max(costs), 2) == speedup


def test_balancing_draws_nothing_that_the_networks_are_made_of() -> None:
    def found() -> list[nn.Module]:
        return [nn.Linear(4, 4, bias=False) for _ in range(8)] + [nn.Linear(4, 3)]

    (balanced, *_), (other, *_) = (ready(found(), (4,), "dgl", modules=modules) for modules in (2, 8))
    assert len(balanced.units) > len(other.units)
    pairs = zip(balanced.auxiliary.parameters(), other.auxiliary.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    with pytest.raises(ValueError, match="modules must be from 1 to 1"):
        balanced_ends(found()[:2], (4,), [(4,), (4,)], None, 2)
