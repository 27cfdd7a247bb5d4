"""What every server rule promises, whatever its paper: pure, deterministic, and content with any subset of names."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import pytest
import torch

from orchestrator.config import load_experiment
from orchestrator.config.schema import Algorithm
from strategies.base import Contribution, Correction, Fold, Participation, ServerRule, State, Tree, Update
from strategies.federated import DEFAULT_PACING, SERVER_RULES, server_rule
from strategies.federated.folding import add, fold
from strategies.federated.server_optimizers import SERVER_OPTIMIZERS, ServerOptimizer
from strategies.seeds import generator

NUM_CLIENTS = 6
OPTIMIZERS = [
    {"name": "sgd", "momentum": 0.9}, {"name": "sgd", "momentum": 0.5, "nesterov": True}, {"name": "adam"},
    {"name": "yogi", "beta1": 0.0}, {"name": "adagrad", "tau": 0.1},
]  # fmt: skip
TAKES_OPTIMIZER = [
    name for name, rule in SERVER_RULES.items() if "server_optimizer" in inspect.signature(rule).parameters
]
ROWS: list[tuple[str, Mapping[str, Any]]] = [
    *((name, {}) for name in SERVER_RULES),
    *((name, {"server_optimizer": optimizer}) for name in ("scaffold", "afa-cs") for optimizer in OPTIMIZERS),
    ("fedavg", {"weighting": "uniform", "server_lr": 0.3}), ("fedavgm", {"nesterov": True}),
    ("fednova", {"mu": 0.5}), ("fedbuff", {"staleness_exponent": 0.0}), ("afa-cd", {"scale": "server*client"}),
    ("afa-cs", {"scale": "server*client", "unheard": "heard"}), ("feddyn", {"alpha": 0.5}),
]  # fmt: skip


def row_id(row: tuple[str, Mapping[str, Any]]) -> str:
    return "-".join([row[0], *(str(value).replace(" ", "") for value in row[1].values())])


@pytest.fixture(params=ROWS, ids=row_id)
def rule(request: pytest.FixtureRequest) -> ServerRule:
    name, arguments = request.param
    return server_rule(name, num_clients=NUM_CLIENTS, **arguments)


def tree(
    purpose: str, *indices: int, dtype: torch.dtype = torch.float64, scale: float = 1.0
) -> dict[str, torch.Tensor]:
    rng = generator(5, purpose, *indices)
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "scale": (), "none": (0, 4)}
    return {name: torch.as_tensor(scale * rng.standard_normal(shape)).to(dtype) for name, shape in shapes.items()}


MODEL = tree("model")


class Server:
    """A rule in use: its state, the model, and what is remembered of each client."""

    def __init__(self, rule: ServerRule, model: Tree = MODEL) -> None:
        self.rule, self.model = rule, model
        self.state: State = rule.init(model)
        self.memories: dict[int, Tree] = {}

    def contribute(self, client: int, change: Tree, *, staleness: int = 0, num_steps: int = 3) -> Contribution:
        memory = self.memories.get(client, self.rule.remember(self.model))
        sent = self.rule.send(self.state)
        proximal = self.rule.correct(sent, memory).proximal
        here = Participation(staleness, 0.05, 0.0, proximal, sent, memory)
        made = self.rule.contribute(Update(str(client), change, 2.0 + client, num_steps, {}), here)
        if made.memory is not None:
            self.memories[client] = made.memory
        return made

    def step(self, contributions: Iterable[Contribution]) -> None:
        folded = fold(contributions)
        assert folded is not None
        self.act(folded)

    def act(self, folded: Fold) -> None:
        self.state, self.model = self.rule.step(self.state, self.model, folded)

    def rounds(self, num_rounds: int, names: Iterable[str] = tuple(MODEL)) -> None:
        dtype = self.model["scale"].dtype
        for round_ in range(num_rounds):
            cohort = generator(5, "cohort", round_).choice(NUM_CLIENTS, 3, replace=False)
            changes = {int(client): tree("change", round_, int(client), dtype=dtype, scale=0.1) for client in cohort}
            self.step(
                self.contribute(client, {name: change[name] for name in names}, staleness=client, num_steps=1 + client)
                for client, change in changes.items()
            )


def same(one: Tree, other: Tree) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def same_state(one: State, other: State) -> bool:
    return list(one) == list(other) and all(same(one[slot], other[slot]) for slot in one)


# ---------------------------------------------------------------------------------------------------- every rule


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_names_shapes_and_dtypes_of_the_model_stay_and_numbers_stay_finite(
    rule: ServerRule, dtype: torch.dtype
) -> None:
    model = tree("model", dtype=dtype)
    server = Server(rule, model)
    server.rounds(4)
    assert list(server.model) == list(model)
    assert all(t.dtype == dtype and t.shape == model[n].shape and t.isfinite().all() for n, t in server.model.items())
    assert not same(server.model, model)


def test_a_state_is_trees_of_tensors_that_a_checkpoint_can_name(rule: ServerRule) -> None:
    server = Server(rule)
    slots = set(server.state)
    server.rounds(2)
    assert set(server.state) == slots and not any("/" in slot for slot in slots)
    for kept in (*server.state.values(), *server.memories.values(), rule.send(server.state)):
        assert all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in kept.items())
        assert all(value.is_floating_point() and value.isfinite().all() for value in kept.values())


def test_what_is_sent_has_names_of_its_own(rule: ServerRule) -> None:
    assert not rule.send(rule.init(MODEL)).keys() & MODEL.keys()


def test_nothing_given_is_changed(rule: ServerRule) -> None:
    server = Server(rule)
    server.rounds(2)
    memory = server.memories.get(0, rule.remember(MODEL))
    sent, change = rule.send(server.state), tree("change", 9)
    given = (server.state, server.model, memory, sent, change)
    before = copy.deepcopy(given)
    rule.correct(sent, memory)
    made = rule.contribute(Update("0", change, 3.0, 2, {}), Participation(1, 0.1, 0.0, 0.0, sent, memory))
    kept = copy.deepcopy((made.tree, made.memory))
    folded = fold([made])
    assert folded is not None
    total = copy.deepcopy(folded.total)
    rule.step(server.state, server.model, folded)
    assert same(folded.total, total) and same(made.tree, kept[0]) and same(made.memory or {}, kept[1] or {})
    assert same_state(given[0], before[0])
    assert all(same(now, then) for now, then in zip(given[1:], before[1:], strict=True))


def test_the_same_rounds_have_the_same_bits(rule: ServerRule) -> None:
    one, other = Server(rule), Server(rule)
    one.rounds(3)
    other.rounds(3)
    assert same(one.model, other.model) and same_state(one.state, other.state)


def test_a_state_that_went_through_a_checkpoint_goes_on_alike(rule: ServerRule) -> None:
    from trainers import wire

    one, other = Server(rule), Server(rule)
    one.rounds(2)
    other.rounds(2)
    flat = {f"{slot}/{name}": tensor for slot, kept in other.state.items() for name, tensor in kept.items()}
    state: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in wire.decode(wire.encode(flat)).items():
        slot, name = key.split("/", 1)
        state.setdefault(slot, {})[name] = tensor
    other.state = state
    other.memories = {client: wire.decode(wire.encode(memory)) for client, memory in other.memories.items()}
    one.rounds(2)
    other.rounds(2)
    assert same(one.model, other.model) and same_state(one.state, other.state)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_where_folds_are_cut_matters_to_rounding_alone(rule: ServerRule, cut: int) -> None:
    whole, parts = Server(rule), Server(rule)
    changes = {client: tree("change", client) for client in range(NUM_CLIENTS)}
    whole.step([whole.contribute(client, change) for client, change in changes.items()])
    made = [parts.contribute(client, changes[client]) for client in reversed(changes)]
    total = None
    for start in range(0, NUM_CLIENTS, cut):
        total = add(total, fold(made[start : start + cut]))
    assert total is not None
    parts.act(total)
    for name in MODEL:
        torch.testing.assert_close(parts.model[name], whole.model[name], rtol=1e-12, atol=1e-12)


def test_no_change_of_any_client_leaves_the_model_where_it_is(rule: ServerRule) -> None:
    server = Server(rule)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in MODEL.items()}
    for _ in range(2):
        server.step([server.contribute(client, nothing) for client in range(3)])
    assert same(server.model, MODEL)


def test_names_that_were_not_folded_stay_and_are_remembered_as_they_were(rule: ServerRule) -> None:
    server = Server(rule)
    server.rounds(2)
    before, state = server.model, server.state
    server.rounds(1, names=("a.weight",))
    assert list(server.model) == list(before)
    assert all(server.model[name] is before[name] for name in before if name != "a.weight")
    assert not torch.equal(server.model["a.weight"], before["a.weight"])
    for slot, kept in server.state.items():
        assert list(kept) == list(state[slot])
        assert all(torch.equal(kept[name], state[slot][name]) for name in ("a.bias", "scale"))


def test_a_client_may_have_made_any_number_of_steps_and_be_as_late_as_it_likes(rule: ServerRule) -> None:
    server = Server(rule)
    change = tree("change", 3)
    server.step([server.contribute(0, change, staleness=10**6, num_steps=5000), server.contribute(1, change)])
    assert all(tensor.isfinite().all() for tensor in server.model.values())


def test_a_correction_has_the_shapes_of_the_model(rule: ServerRule) -> None:
    server = Server(rule)
    server.rounds(2)
    for client in range(NUM_CLIENTS):
        made = rule.correct(rule.send(server.state), server.memories.get(client, rule.remember(MODEL)))
        assert isinstance(made, Correction) and made.proximal >= 0 and math.isfinite(made.proximal)
        assert all(tensor.shape == MODEL[name].shape for name, tensor in (made.offset or {}).items())


def test_a_server_optimizer_of_ones_own_is_taken() -> None:
    halving = ServerOptimizer(
        lambda model: {},
        lambda state, model, gradient: (state, {n: t - 0.5 * gradient[n].sign() for n, t in model.items()}),
    )
    for name in TAKES_OPTIMIZER:
        server = Server(server_rule(name, num_clients=NUM_CLIENTS, server_optimizer=halving))
        server.rounds(1)
        moved = (server.model["a.weight"] - MODEL["a.weight"]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.5))


# ---------------------------------------------------------------------------------------------- names and sections


def test_every_rule_has_a_pacing_and_its_own_name() -> None:
    assert DEFAULT_PACING.keys() == SERVER_RULES.keys()
    assert {name: server_rule(name, num_clients=3).name for name in SERVER_RULES} == {n: n for n in SERVER_RULES}


def test_every_rule_has_a_section_whose_fields_are_its_arguments_and_defaults() -> None:
    sections = [get_args(option)[0] for option in get_args(get_args(Algorithm)[0])]
    assert [section.model_fields["name"].annotation.__args__[0] for section in sections] == list(SERVER_RULES)
    for name, section in zip(SERVER_RULES, sections, strict=True):
        said = section(name=name).arguments()
        parameters = list(inspect.signature(SERVER_RULES[name]).parameters.values())[1:]
        assert set(said) == {parameter.name for parameter in parameters}, name
        plain = {p.name: p.default for p in parameters if p.name != "server_optimizer"}
        assert {key: value for key, value in said.items() if key != "server_optimizer"} == plain, name
        server_rule(name, num_clients=3, **said)


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_every_server_optimizer_has_a_section_with_its_defaults(name: str) -> None:
    algorithm = {"name": "scaffold", "server_optimizer": {"name": name}}
    raw = {"name": "x", "data": {"name": "digits"}, "model": {"name": "mlp"}, "strategy": {"algorithm": algorithm}}
    section = load_experiment(raw).experiment.strategy.algorithm.server_optimizer
    parameters = inspect.signature(SERVER_OPTIMIZERS[name]).parameters
    assert section.model_dump() == {"name": name, **{k: p.default for k, p in parameters.items() if k != "lr"}}
