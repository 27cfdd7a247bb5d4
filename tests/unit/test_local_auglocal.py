"""AugLocal: depths, units, strides, sizes and memory are those of its authors' program."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch
from torch import nn

from strategies.local import rule, train_batch, units
from strategies.local.auglocal import auxiliary_depths, auxiliary_plan, selected
from strategies.local.auxiliary import strides
from strategies.local.cuts import multiplications
from strategies.local.memory import Saved, backward_bytes
from trainers.models import build

R32 = [16] * 6 + [32] * 5 + [64] * 5
R110 = [16] * 19 + [32] * 18 + [64] * 18


def resnet(depth: int, **settings) -> nn.Module:
    section = {"name": "resnet", "depth": depth, "norm": "batch", "shortcut": "convolution", **settings}
    return build(section, input_shape=(3, 32, 32), num_classes=10, seed=0)


def modules_of(model: nn.Module, name: str, **arguments):
    made = rule(name, **arguments)
    return made, made.modules(units(model), num_classes=10, input_shape=(3, 32, 32), seed=0)


def sizes(modules) -> int:
    return sum(p.numel() for module in modules if module.auxiliary for p in module.auxiliary.parameters())


@pytest.mark.parametrize(
    ("num_units", "depth", "num_modules", "runs", "total"),
    [
        (16, 2, 14, [(2, 13)], 26),
        (16, 3, 13, [(3, 6), (2, 6)], 30),
        (16, 5, 11, [(5, 3), (4, 4), (3, 3)], 40),
        (55, 3, 52, [(3, 25), (2, 26)], 127),
        (55, 5, 50, [(5, 12), (4, 25), (3, 12)], 196),
        (55, 6, 49, [(6, 10), (5, 19), (4, 19)], 231),
    ],
)
def test_depths_fall_as_the_authors_program_has_them(num_units, depth, num_modules, runs, total) -> None:
    depths = auxiliary_depths(num_modules, depth)
    assert [(value, len(list(run))) for value, run in groupby(depths)] == runs
    plan = auxiliary_plan(num_units, depth)
    assert [len(chosen) for chosen in plan] == depths
    assert sum(depths) == total
    assert len(plan) == num_modules - 1 == num_units - depth - 1


@pytest.mark.parametrize(
    ("widths", "depth", "unit", "chosen", "steps"),
    [
        (R32, 2, 0, (8, 15), [2, 2]),
        (R32, 2, 5, (10, 15), [2, 2]),
        (R32, 2, 6, (10, 15), [1, 2]),
        (R32, 2, 10, (12, 15), [2, 1]),
        (R110, 3, 0, (18, 36, 54), [1, 2, 2]),
        (R110, 3, 19, (31, 42, 54), [1, 2, 1]),
        (R110, 3, 25, (40, 54), [2, 1]),
        (R110, 3, 50, (52, 54), [1, 1]),
        (R32, 1, 0, (15,), [2]),  # two halvings owed, one made
    ],
)
def test_units_are_spread_evenly_and_strides_follow_the_widths(widths, depth, unit, chosen, steps) -> None:
    assert auxiliary_plan(len(widths), depth)[unit] == chosen
    assert strides([widths[unit], *(widths[index] for index in chosen)]) == steps


def test_imagenets_plan_has_neither_a_pyramid_nor_fewer_modules() -> None:
    plan = auxiliary_plan(17, 4, decay=0.0, ends=range(16))
    assert (plan[0], plan[8], plan[14], plan[15]) == ((4, 8, 12, 16), (10, 12, 14, 16), (15, 16), (16,))
    assert len(plan) == 16


def test_ties_round_to_even_as_the_authors_program_rounds() -> None:
    def half_up(num_units: int, unit: int, depth: int) -> tuple[int, ...]:
        return tuple(int(unit + (num_units - 1 - unit) / depth * j + 0.5) for j in range(1, depth + 1))

    differ = [unit for unit in range(13) if selected(16, unit, 2) != half_up(16, unit, 2)]
    assert differ == [2, 6, 10]
    assert [unit for unit in range(12) if selected(17, unit, 4) != half_up(17, unit, 4)] == [1, 2, 5, 6, 9, 10]
    assert all(selected(55, unit, 3) == half_up(55, unit, 3) for unit in range(51))


def test_an_owed_halving_is_made_by_the_next_unit_or_never() -> None:
    assert strides([16, 64, 64, 64]) == [2, 2, 1]
    assert strides([16, 64]) == [2]
    assert strides([16, 24, 48]) == [1, 2]
    assert strides([64, 16, 64]) == [1, 2]


@pytest.mark.parametrize(
    ("depth", "name", "arguments", "num_modules", "num_parameters"),
    [
        (32, "auglocal", {"depth": 2}, 14, 1_341_058),
        (32, "auglocal", {"depth": 3}, 13, 1_511_608),
        (32, "auglocal", {"depth": 5}, 11, 1_684_388),
        (110, "auglocal", {"depth": 3}, 52, 7_240_702),
        pytest.param(110, "auglocal", {"depth": 5}, 50, 10_279_466, marks=pytest.mark.slow),
        pytest.param(110, "auglocal", {"depth": 6}, 49, 12_466_400, marks=pytest.mark.slow),
        (32, "dgl", {}, 16, 838_294),
        pytest.param(110, "dgl", {}, 55, 3_375_036, marks=pytest.mark.slow),
    ],
)
def test_auxiliary_networks_have_the_published_programs_sizes(
    depth, name, arguments, num_modules, num_parameters
) -> None:
    model = resnet(depth)
    own = sum(p.numel() for p in model.parameters())
    assert own == {32: 466_906, 110: 1_730_714}[depth]
    _, modules = modules_of(model, name, **arguments)
    assert len(modules) == num_modules
    assert sizes(modules) == num_parameters
    assert sum(p.numel() for module in modules for p in module.parameters()) == own + num_parameters


def test_a_network_of_depth_one_normalises_before_its_affine_map_and_deeper_ones_do_not() -> None:
    def norms(depth: int) -> set[bool]:
        _, modules = modules_of(resnet(8), "auglocal", depth=depth, decay=0.0)
        return {any(isinstance(p, nn.BatchNorm1d) for p in module.auxiliary.modules()) for module in modules[:-1]}

    assert (norms(1), norms(2)) == ({True}, {False})


@pytest.mark.parametrize(
    ("depth", "deep", "of_backbone", "largest"),
    [
        (32, 2, 2.52, 14.2),
        pytest.param(32, 3, 2.79, 18.9, marks=pytest.mark.slow),
        pytest.param(32, 5, 3.49, 27.3, marks=pytest.mark.slow),
        pytest.param(110, 3, 3.14, 18.9, marks=pytest.mark.slow),
        pytest.param(110, 5, 4.42, 28.3, marks=pytest.mark.slow),
        pytest.param(110, 6, 5.07, 33.0, marks=pytest.mark.slow),
    ],
)
def test_multiplications_are_those_counted_on_the_authors_program(depth, deep, of_backbone, largest) -> None:
    model, x = resnet(depth), torch.zeros(1, 3, 32, 32)
    whole = multiplications(model, x)
    assert round(whole / 1e6, 1) == {32: 69.1, 110: 253.1}[depth]
    costs = []
    for module in modules_of(model, "auglocal", depth=deep)[1]:
        costs.append(multiplications(module.units, x))
        x = module.infer({"h": x})["h"]
        costs[-1] += multiplications(module.auxiliary, x) if module.auxiliary is not None else 0
    assert round(sum(costs) / whole, 2) == of_backbone
    assert round(max(costs) / 1e6, 1) == largest


def peak_mib(model: nn.Module, size: int, side: int, name: str | None, **arguments) -> float:
    x, y = torch.zeros(size, 3, side, side), torch.arange(size) % 10
    if name is None:
        return backward_bytes(model, x, y) / size / 2**20
    made = rule(name, **arguments)
    modules = made.modules(units(model), num_classes=10, input_shape=(3, side, side), seed=0)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.0) for module in modules]
    with Saved(modules) as saved:
        train_batch(modules, optimizers, made, x, y, 0, num_classes=10)
    return saved.peak_bytes / size / 2**20


@pytest.mark.parametrize(
    ("depth", "name", "arguments", "mib"),
    [
        (32, None, {}, 2.37),
        (32, "dgl", {}, 0.34),
        (32, "auglocal", {"depth": 2}, 0.55),
        pytest.param(32, "auglocal", {"depth": 5}, 0.99, marks=pytest.mark.slow),
        pytest.param(110, None, {}, 8.07, marks=pytest.mark.slow),
        pytest.param(110, "auglocal", {"depth": 6}, 1.11, marks=pytest.mark.slow),
    ],
)
def test_what_is_saved_for_backward_passes_is_what_was_measured_on_the_authors_program(
    depth, name, arguments, mib
) -> None:
    assert peak_mib(resnet(depth), 2, 32, name, **arguments) == pytest.approx(mib, rel=0.02)


@pytest.mark.parametrize("deep", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_network_three_times_as_deep_saves_no_more(deep: int) -> None:
    narrow = {"width": 4}
    least, most = (peak_mib(resnet(depth, **narrow), 2, 8, "auglocal", depth=deep) for depth in (32, 110))
    assert least == most
    assert peak_mib(resnet(110, **narrow), 2, 8, None) > 10 * most


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 0}, "1 <= min_depth <= depth"),
        ({"depth": 2, "min_depth": 3}, "min_depth 3 and depth 2"),
        ({"decay": 1.5}, "decay must be from 0 to 1, got 1.5"),
        ({"modules": 0}, "modules must be a whole number above 0"),
        ({"modules": "paperr"}, "got 'paperr'"),
        ({"depth": 4}, "depth must be below the 4 units"),
        ({"modules": 5}, "modules must be from 1 to 4"),
        ({"modules": [2, 3]}, r"modules must have 4 units together and each at least one, got \[2, 3\]"),
        ({"modules": [4, 0]}, r"each at least one, got \[4, 0\]"),
        ({"modules": []}, r"4 units together and each at least one, got \[\]"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(arguments, said) -> None:
    with pytest.raises(ValueError, match=said):
        modules_of(resnet(8), "auglocal", **arguments)


@pytest.mark.parametrize("name", ["auglocal", "dgl", "predsim"])
def test_modules_have_the_units_they_are_told_and_are_otherwise_those_of_a_number_of_modules(name: str) -> None:
    _, by_cost = modules_of(resnet(20), name, modules=2)
    counts = [len(module.units) for module in by_cost]
    counts[-1] -= 1  # the head is not counted
    _, told = modules_of(resnet(20), name, modules=counts)
    for left, right in zip(by_cost, told, strict=True):
        theirs = right.state_dict()
        assert left.state_dict().keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in left.state_dict().items())
    _, three = modules_of(resnet(20), name, modules=(1, 7, 2))
    assert [len(module.units) for module in three] == [1, 7, 3]
    assert [module.auxiliary is None for module in three] == [False, False, True]


def test_a_plan_ends_within_the_units() -> None:
    assert auxiliary_plan(5, 4) == []
    with pytest.raises(ValueError, match="end at units 0 to 3"):
        auxiliary_plan(5, 1, ends=[4])
