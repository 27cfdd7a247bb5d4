"""What every rule of local learning promises, whatever it computes; a new rule adds a row in `local_rows`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from strategies.local import RULES, Carry, LocalModule, LocalRule, predict, rule, serial, train_batch
from strategies.local.memory import Saved

sys.path.insert(0, str(Path(__file__).parent))
from local_rows import CLASSES, ROWS, Row, batch

sys.path.pop(0)


def test_every_rule_has_a_row() -> None:
    assert {row.rule for row in ROWS} == set(RULES)


def built(row: Row, depth: int = 4, seed: int = 1) -> tuple[LocalRule, list[LocalModule], list[nn.Module]]:
    """A rule, its modules and the units they were made of; the units' own weights are the same for every seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        units = list(row.units(depth))
    made = rule(row.rule, **row.arguments)
    modules = made.modules(units, num_classes=CLASSES, input_shape=row.input_shape, seed=seed)
    return made, modules, units


def optimizers(modules: Sequence[LocalModule], lr: float = 0.05) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9) for module in modules]


def trained(row: Row, *, seed: int = 1, batches: int = 2, depth: int = 4) -> tuple[list[list[float]], list[Carry]]:
    made, modules, _ = built(row, depth, seed)
    steps, (x, y) = optimizers(modules), batch(row)
    losses = [train_batch(modules, steps, made, x, y, 10 * seed + t, num_classes=CLASSES) for t in range(batches)]
    return losses, [dict(module.state_dict()) for module in modules]


def forwards(made: LocalRule, modules: Sequence[LocalModule], x: Tensor, y: Tensor) -> list[Carry]:
    """Run all modules forward, none of which learns; return what each was given, and the last carry."""
    carries = [made.start(x, y, CLASSES, 7)]
    for index, module in enumerate(modules):
        carries.append(module(carries[-1], y, serial.module_seed(7, index)))
    return carries


def same(left: Carry, right: Carry) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def copied(carry: Carry) -> Carry:
    return {name: tensor.clone() for name, tensor in carry.items()}


@pytest.fixture(params=ROWS, ids=lambda row: "-".join([row.rule, *map(str, row.arguments.values())]))
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def test_learning_gives_gradients_to_exactly_the_modules_own_parameters(row: Row) -> None:
    made, modules, _ = built(row)
    forwards(made, modules, *batch(row))
    for module in modules:
        for other in modules:
            other.zero_grad(set_to_none=True)
        module.learn()
        own = {id(parameter) for parameter in module.parameters()}
        given = {id(p) for other in modules for p in other.parameters() if p.grad is not None}
        assert given == own
        assert own


def test_modules_share_no_parameter_and_have_all_of_the_units(row: Row) -> None:
    _, modules, units = built(row)
    owned = [id(parameter) for module in modules for parameter in module.parameters()]
    assert len(owned) == len(set(owned))
    kept = units if row.has_head else units[:-1]
    assert {id(parameter) for unit in kept for parameter in unit.parameters()} <= set(owned)
    assert len(modules) > 1


def test_nothing_that_crosses_a_boundary_has_a_gradient(row: Row) -> None:
    made, modules, _ = built(row)
    x, y = batch(row)
    for carry in forwards(made, modules, x, y):
        assert carry
        assert all(tensor.grad_fn is None and not tensor.requires_grad for tensor in carry.values())


def test_what_is_kept_for_backward_passes_does_not_grow_with_depth(row: Row) -> None:
    peaks = []
    for depth in (6, 12):
        made, modules, _ = built(row, depth)
        x, y = batch(row)
        with Saved(modules) as saved:
            train_batch(modules, optimizers(modules), made, x, y, 0, num_classes=CLASSES)
        assert saved.now_bytes == 0
        peaks.append(saved.peak_bytes)
    if row.is_flat:
        assert peaks[0] == peaks[1]
    else:  # so many modules, which are as deep as the model makes them; or activities that are gathered on the way
        assert peaks[0] < peaks[1] < 2 * peaks[0]


def test_the_same_seeds_give_the_same_bits_and_others_others(row: Row) -> None:
    before = torch.get_rng_state()
    losses, states = trained(row)
    assert torch.equal(torch.get_rng_state(), before)
    again, states_again = trained(row)
    _, other = trained(row, seed=2)
    assert losses == again
    assert all(same(left, right) for left, right in zip(states, states_again, strict=True))
    assert not all(same(left, right) for left, right in zip(states, other, strict=True))


def test_what_is_sent_was_computed_before_the_module_learned(row: Row) -> None:
    made, modules, _ = built(row)
    x, y = batch(row)
    carry = made.start(x, y, CLASSES, 7)
    moved = []
    for index, (module, optimizer) in enumerate(zip(modules, optimizers(modules, lr=1.0), strict=True)):
        seed, twin = serial.module_seed(7, index), copy.deepcopy(module)
        given = copied(carry)
        sent = module(carry, y, seed)
        as_sent = copied(sent)
        serial.learn(module, optimizer)
        assert same(sent, as_sent) and same(carry, given)
        assert same(sent, twin(carry, y, seed))
        moved.append(not same(sent, copy.deepcopy(module)(carry, y, seed)))
        carry = sent
    assert any(moved) or made.stream == "none"


def test_a_module_learns_the_same_whatever_the_others_do(row: Row) -> None:
    made, modules, _ = built(row)
    x, y = batch(row)
    carries = [copied(carry) for carry in forwards(made, modules, x, y)]
    _, fresh, _ = built(row)
    for index in reversed(range(len(fresh))):
        twin = fresh[index]
        twin(carries[index], y, serial.module_seed(7, index))
        assert twin.learn() == modules[index].learn()
        grads = [(p.grad, q.grad) for p, q in zip(twin.parameters(), modules[index].parameters(), strict=True)]
        assert all(torch.equal(left, right) for left, right in grads)


def test_inference_leaves_no_trace(row: Row) -> None:
    made, modules, _ = built(row)
    x, y = batch(row)
    forwards(made, modules, x, y)
    twins = built(row)[1]
    forwards(made, twins, x, y)
    modules[0].train(False)
    modes = [part.training for module in modules for part in module.modules()]
    states = [copied(dict(module.state_dict())) for module in modules]
    generator = torch.get_rng_state()
    scores = predict(modules, made, x, num_classes=CLASSES, seed=4)
    assert scores.shape == (len(x), CLASSES) and not scores.requires_grad
    assert torch.equal(predict(modules, made, x, num_classes=CLASSES, seed=4), scores)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [part.training for module in modules for part in module.modules()] == modes
    assert all(same(old, dict(module.state_dict())) for old, module in zip(states, modules, strict=True))
    assert all(parameter.grad is None for module in modules for parameter in module.parameters())
    assert [module.learn() for module in modules] == [twin.learn() for twin in twins]


def test_a_modules_state_is_all_that_it_needs_to_go_on(row: Row) -> None:
    made, modules, _ = built(row)
    _, others, _ = built(row, seed=9)
    x, y = batch(row)
    train_batch(modules, optimizers(modules), made, x, y, 0, num_classes=CLASSES)
    for module, other in zip(modules, others, strict=True):
        other.load_state_dict(module.state_dict())
    losses = [train_batch(m, optimizers(m), made, x, y, 1, num_classes=CLASSES) for m in (modules, others)]
    assert losses[0] == losses[1]
    states = [[dict(module.state_dict()) for module in found] for found in (modules, others)]
    assert all(same(left, right) for left, right in zip(*states, strict=True))


def test_a_rule_learns_to_tell_three_clouds_apart(row: Row) -> None:
    made, modules, _ = built(row, depth=3 if "depth" not in row.arguments else 4)
    steps, (x, y) = optimizers(modules, row.lr), batch(row, 48)
    if row.adam:
        steps = [torch.optim.Adam(module.parameters(), lr=row.lr) for module in modules]
    for step in range(row.steps):
        train_batch(modules, steps, made, x, y, step, num_classes=CLASSES)
    assert (predict(modules, made, x, num_classes=CLASSES).argmax(dim=1) == y).float().mean() >= 0.95


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("auglocl", {}, "did you mean 'auglocal'"),
        ("auglocal", {"deep": 2}, "unknown argument 'deep'; it takes depth"),
    ],
)
def test_names_that_are_none_are_refused_with_what_is(name: str, arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rule(name, **arguments)
