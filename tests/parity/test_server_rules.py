"""Server rules against their papers' formulas, written once more in plain numpy, over several rounds.

Clients have quadratics `F_i(y) = sum h_i (y - m_i)^2 / 2`, so every gradient is known, and train by the loop below,
which is the only thing that both sides share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from strategies.base import Contribution, Correction, Participation, ServerRule, State, Tree, Update
from strategies.federated import server_rule
from strategies.federated.fednova import local_work
from strategies.federated.folding import fold
from strategies.seeds import generator

N, D, LR = 5, 4, 0.07
RNG = generator(3, "quadratics")
CURVATURE, CENTRE = RNG.uniform(0.5, 2.0, (N, D)), RNG.normal(0, 3, (N, D))
EXAMPLES = np.array([3.0, 1.0, 7.0, 2.0, 5.0])
START = RNG.normal(0, 1, D)
TOLERANCE = {"rtol": 0.0, "atol": 1e-12}


def slope(client: int, y: np.ndarray) -> np.ndarray:
    return CURVATURE[client] * (y - CENTRE[client])


class Local(NamedTuple):
    """A client's change, and the gradients of its own objective along the way [steps, D]."""

    change: np.ndarray
    slopes: np.ndarray


def descend(client: int, x: np.ndarray, num_steps: int, correction: Correction, momentum: float = 0.0) -> Local:
    """SGD from `x` with a correction: torch's momentum."""
    offset = 0.0 if correction.offset is None else correction.offset["w"].numpy()
    y, velocity, slopes = x.copy(), np.zeros(D), []
    for _ in range(num_steps):
        slopes.append(slope(client, y))
        velocity = momentum * velocity + slopes[-1] + offset + correction.proximal * (y - x)
        y = y - LR * velocity
    return Local(y - x, np.array(slopes))


class Server:
    """A rule in use over the quadratics."""

    def __init__(self, name: str, client_momentum: float = 0.0, **arguments: Any) -> None:
        self.rule: ServerRule = server_rule(name, num_clients=N, **arguments)
        self.momentum = client_momentum
        self.model: Tree = {"w": torch.tensor(START)}
        self.state: State = self.rule.init(self.model)
        self.memories: dict[int, Tree] = {}

    @property
    def x(self) -> np.ndarray:
        return self.model["w"].numpy()

    def contribution(self, client: int, num_steps: int, staleness: int = 0, change: Any = None) -> Contribution:
        memory, sent = self.memories.get(client, self.rule.remember(self.model)), self.rule.send(self.state)
        correction = self.rule.correct(sent, memory)
        if change is None:
            change = descend(client, self.x, num_steps, correction, self.momentum).change
        update = Update(str(client), {"w": torch.tensor(change)}, EXAMPLES[client], num_steps, {})
        here = Participation(staleness, LR, self.momentum, correction.proximal, sent, memory)
        made = self.rule.contribute(update, here)
        self.memories[client] = memory if made.memory is None else made.memory
        return made

    def round(self, work: Mapping[int, int]) -> np.ndarray:
        return self.act([self.contribution(client, num_steps) for client, num_steps in work.items()])

    def act(self, contributions: Sequence[Contribution]) -> np.ndarray:
        folded = fold(contributions)
        assert folded is not None
        self.state, self.model = self.rule.step(self.state, self.model, folded)
        return self.x


ROUNDS: list[dict[int, int]] = [
    {0: 3, 2: 1, 3: 5},
    {1: 4, 2: 2},
    {0: 1, 1: 1, 2: 6, 3: 2, 4: 3},
    {4: 7},
    {1: 2, 3: 3, 4: 1},
]
"""Clients of each round, and their numbers of local steps."""


def shares(work: Mapping[int, int], weighting: str = "examples") -> dict[int, float]:
    weights = {client: EXAMPLES[client] if weighting == "examples" else 1.0 for client in work}
    return {client: weight / sum(weights.values()) for client, weight in weights.items()}


def mean_change(x: np.ndarray, work: Mapping[int, int], weighting: str, mu: float = 0.0) -> np.ndarray:
    pulled = Correction(proximal=mu)
    return sum(p * descend(i, x, work[i], pulled).change for i, p in shares(work, weighting).items())


# ------------------------------------------------------------------------------------------ server optimizers


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_fedavgm_is_momentum_on_the_mean_change(weighting: str, nesterov: bool) -> None:
    server = Server("fedavgm", server_lr=0.8, momentum=0.6, nesterov=nesterov, weighting=weighting)
    x, v = START, np.zeros(D)
    for work in ROUNDS:
        change = mean_change(x, work, weighting)
        v = 0.6 * v + change
        x = x + 0.8 * (change + 0.6 * v if nesterov else v)
        np.testing.assert_allclose(server.round(work), x, **TOLERANCE)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_adaptive_servers_are_algorithm_2_of_reddi(name: str, weighting: str) -> None:
    betas = {"beta1": 0.7} if name == "fedadagrad" else {"beta1": 0.7, "beta2": 0.95}
    server = Server(name, server_lr=0.2, tau=0.05, weighting=weighting, **betas)
    x, m, v = START, np.zeros(D), np.full(D, 0.05**2)
    for work in ROUNDS:
        change = mean_change(x, work, weighting)
        m = 0.7 * m + 0.3 * change
        v = {
            "fedadam": 0.95 * v + 0.05 * change**2,
            "fedyogi": v - 0.05 * change**2 * np.sign(v - change**2),
            "fedadagrad": v + change**2,
        }[name]
        x = x + 0.2 * m / (np.sqrt(v) + 0.05)
        np.testing.assert_allclose(server.round(work), x, **TOLERANCE)


def test_a_server_optimizer_serves_any_rule() -> None:
    adam = {"name": "adam", "beta1": 0.7, "beta2": 0.95, "tau": 0.05}
    one = Server("fedadam", server_lr=0.2, beta1=0.7, beta2=0.95, tau=0.05)
    other = Server("fedprox", mu=0.0, server_lr=0.2, server_optimizer=adam)
    for work in ROUNDS:
        np.testing.assert_array_equal(one.round(work), other.round(work))


# ------------------------------------------------------------------------------------------------ client corrections


def test_fedprox_pulls_towards_the_received_model() -> None:
    server, x = Server("fedprox", mu=1.5), START
    for work in ROUNDS:
        change = 0.0
        for i, p in shares(work).items():
            y = x.copy()
            for _ in range(work[i]):
                y = y - LR * (CURVATURE[i] * (y - CENTRE[i]) + 1.5 * (y - x))
            change = change + p * (y - x)
        x = x + change
        np.testing.assert_allclose(server.round(work), x, **TOLERANCE)


def test_fedprox_ends_at_the_minimum_of_the_papers_objective() -> None:
    server = Server("fedprox", mu=4.0)
    h, m = CURVATURE[2], CENTRE[2]
    np.testing.assert_allclose(server.round({2: 2000}), (h * m + 4.0 * START) / (h + 4.0), rtol=1e-9)


def test_scaffold_is_algorithm_1_with_option_2() -> None:
    server = Server("scaffold", server_lr=0.7)
    x, c, own = START, np.zeros(D), np.zeros((N, D))
    for work in ROUNDS + ROUNDS:
        moves, changes = [], []
        for i, num_steps in work.items():
            y = x.copy()
            for _ in range(num_steps):
                y = y - LR * (slope(i, y) - own[i] + c)
            fresh = own[i] - c + (x - y) / (num_steps * LR)
            moves.append(y - x)
            changes.append(fresh - own[i])
            own[i] = fresh
        x = x + 0.7 * np.mean(moves, axis=0)
        c = c + np.sum(changes, axis=0) / N
        np.testing.assert_allclose(server.round(work), x, **TOLERANCE)
        np.testing.assert_allclose(server.state["control"]["w"].numpy(), c, **TOLERANCE)
        for i in work:
            np.testing.assert_allclose(server.memories[i]["w"].numpy(), own[i], **TOLERANCE)


def test_the_servers_control_variate_is_the_mean_of_the_clients_even_when_changes_come_damaged() -> None:
    server = Server("scaffold")
    rng = generator(3, "damage")
    for work in ROUNDS:
        server.act([server.contribution(i, k, change=rng.normal(0, 1, D)) for i, k in work.items()])
    mean = sum(memory["w"].numpy() for memory in server.memories.values()) / N
    np.testing.assert_allclose(server.state["control"]["w"].numpy(), mean, atol=1e-10)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_corrected_clients_reach_the_optimum_that_fedavg_misses(name: str) -> None:
    optimum = (CURVATURE * CENTRE).sum(0) / CURVATURE.sum(0)
    corrected = Server(name, **({"alpha": 0.5} if name == "feddyn" else {}))
    plain = Server("fedavg", weighting="uniform")
    for round_ in range(400):
        work = {int(i): 10 for i in generator(3, "cohort", round_).choice(N, 3, replace=False)}
        corrected.round(work)
        plain.round(dict.fromkeys(range(N), 10))
    assert np.abs(corrected.x - optimum).max() < 1e-3
    assert np.abs(plain.x - optimum).max() > 0.05


def test_feddyn_is_algorithm_1() -> None:
    server, alpha = Server("feddyn", alpha=0.3), 0.3
    x, h, own = START, np.zeros(D), np.zeros((N, D))
    for work in ROUNDS:
        ends = []
        for i, num_steps in work.items():
            y = x.copy()
            for _ in range(num_steps):
                y = y - LR * (slope(i, y) - own[i] + alpha * (y - x))
            own[i] = own[i] - alpha * (y - x)
            ends.append(y)
        h = h - alpha / N * sum(y - x for y in ends)
        x = np.mean(ends, axis=0) - h / alpha
        np.testing.assert_allclose(server.round(work), x, **TOLERANCE)


# --------------------------------------------------------------------------------------------- weights of updates


def coefficients(num_steps: int, momentum: float, shrink: float) -> np.ndarray:
    """The vector `a` of the paper, for momentum or for a proximal term."""
    if momentum:
        return (1 - momentum ** np.arange(num_steps, 0, -1)) / (1 - momentum)
    return (1 - shrink) ** np.arange(num_steps - 1, -1, -1)


@pytest.mark.parametrize(("momentum", "mu"), [(0.0, 0.0), (0.9, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_fednova_is_the_papers_normalised_mean(momentum: float, mu: float, weighting: str) -> None:
    server, x = Server("fednova", momentum, mu=mu, weighting=weighting), START
    for work in ROUNDS:
        effective, step = 0.0, 0.0
        for i, p in shares(work, weighting).items():
            local = descend(i, x, work[i], Correction(proximal=mu), momentum)
            a = coefficients(work[i], momentum, LR * mu)
            np.testing.assert_allclose(local.change, -LR * a @ local.slopes, **TOLERANCE)
            effective += p * a.sum()
            step = step + p * LR * (a @ local.slopes) / a.sum()
        x = x - effective * step
        np.testing.assert_allclose(server.round(work), x, **TOLERANCE)


@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_local_work_is_the_closed_form_of_each_optimizer(num_steps: int) -> None:
    assert local_work(num_steps) == num_steps
    assert local_work(num_steps, 0.9) == pytest.approx(coefficients(num_steps, 0.9, 0.0).sum(), rel=1e-12)
    assert local_work(num_steps, 0.9) == pytest.approx((num_steps - 0.9 * (1 - 0.9**num_steps) / 0.1) / 0.1, rel=1e-9)
    assert local_work(num_steps, 0.0, 0.2) == pytest.approx((1 - 0.8**num_steps) / 0.2, rel=1e-12)


def test_fednova_of_equal_work_is_fedavg() -> None:
    one, other = Server("fednova"), Server("fedavg")
    for work in ROUNDS:
        equal = dict.fromkeys(work, 4)
        np.testing.assert_allclose(one.round(equal), other.round(equal), **TOLERANCE)


def test_fednova_finds_the_optimum_of_the_objective_that_fedavg_distorts() -> None:
    weights = EXAMPLES[:, None] / EXAMPLES.sum()
    optimum = (weights * CURVATURE * CENTRE).sum(0) / (weights * CURVATURE).sum(0)
    ends = {}
    for name in ("fednova", "fedavg"):
        server = Server(name)
        for _ in range(300):
            server.round({0: 9, 1: 1, 2: 1, 3: 5, 4: 1})
        ends[name] = np.abs(server.x - optimum).max()
    assert ends["fednova"] < 0.5 * ends["fedavg"]


def test_fedbuff_discounts_the_stale_and_divides_by_the_buffers_count() -> None:
    server, x = Server("fedbuff", server_lr=0.5), START
    for work in ROUNDS:
        made, step = [], 0.0
        for late, (i, num_steps) in enumerate(work.items()):
            change = descend(i, x, num_steps, Correction()).change
            made.append(server.contribution(i, num_steps, staleness=late, change=change))
            step = step + change / np.sqrt(1 + late)
        x = x + 0.5 * step / len(work)
        np.testing.assert_allclose(server.act(made), x, **TOLERANCE)
    assert [server.contribution(0, 1, staleness=late).weight for late in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
