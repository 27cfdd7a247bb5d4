"""Rounds under attack: any aggregator in the mean's place, any attack, with every server rule, bit for bit the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.preparing import prepare
from strategies.federated import SERVER_RULES
from tests.contract.federated_plays import CLIENTS, Shuffled, close, config, differ, play, same

SIGN_FLIP = {"name": "sign_flip", "attackers": 2}
NNM_TRIM = {"name": "trimmed_mean", "pre": [{"name": "nnm"}]}
EVERYBODY = {"name": "fedavg", "cohort": "all"}
CASES: dict[str, Mapping[str, Any]] = {
    "trimmed mean after mixing": config(EVERYBODY, aggregator=NNM_TRIM, attack=SIGN_FLIP),
    "bucketing, centred clipping": config(
        EVERYBODY, aggregator={"name": "centered_clipping", "radius": 0.5, "pre": [{"name": "bucketing"}]}
    ),
    "attackers that join and optimise": config(
        EVERYBODY, aggregator={"name": "median"},
        attack={"name": "optimal_little_is_enough", "attackers": 2, "join": True},
    ),
    "attackers that remember": config(
        EVERYBODY, aggregator={"name": "krum"},
        attack={"name": "mimic", "attackers": 2, "join": True, "target": "spread", "warm_up": 2},
    ),
    "a server with data of its own": config(EVERYBODY, aggregator={"name": "fltrust", "root_examples": 20}),
    "poisoned data": config(EVERYBODY, attack={"name": "flip_all", "attackers": 2, "join": True}),
    "anarchic": config(
        "afa-cd", pacing={"kind": "anarchic", "buffer": 5}, aggregator={"name": "median"}, attack=SIGN_FLIP
    ),
    "compressed, personal tensors, side by side": config(
        EVERYBODY, aggregator=NNM_TRIM, attack=SIGN_FLIP, compression=[{"name": "top-k", "keep": 0.3}],
        error_feedback=True, aggregate_keys="weight",
        client={"steps": 3, "batch_size": 4, "optimizer": {"lr": 0.1}, "vectorise": "batched"},
        evaluate={"clients": {"held_out": 0.2}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_workers_and_cuts_change_no_bit(settings: Mapping[str, Any]) -> None:
    whole = play(settings)
    same(whole, play(settings, Shuffled))
    cut = play(settings, cuts=(2,))
    same(whole._replace(reports=cut.reports[:3] + whole.reports[3:]), cut)


@pytest.mark.parametrize("algorithm", SERVER_RULES)
def test_a_mean_of_contributions_side_by_side_is_that_of_their_sum(algorithm: str) -> None:
    """With an attack that begins after the last round, nothing is attacked and all contributions travel one by one."""
    never = {"name": "sign_flip", "attackers": 2, "begins": 100}
    plain, stacked = play(config(algorithm)), play(config(algorithm, attack=never))
    close(plain.model, stacked.model, 2e-6)
    assert plain.clients.keys() == stacked.clients.keys()


def test_a_median_withstands_what_a_mean_does_not() -> None:
    away = {"name": "gaussian", "attackers": 2, "join": True, "std": 100.0}
    plain = play(config(EVERYBODY, attack=away)).model
    robust = play(config(EVERYBODY, attack=away, aggregator={"name": "median"})).model
    honest = play(config(EVERYBODY)).model
    distance = {
        name: sum(float((tree[key] - honest[key]).norm()) for key in honest)
        for name, tree in {"mean": plain, "median": robust}.items()
    }
    assert distance["mean"] > 100 > 10 > distance["median"]


@pytest.mark.parametrize("aggregator", ["median", "krum", "geometric_median", "mean"])
def test_vectors_that_are_no_numbers_are_rejected_and_counted(aggregator: str) -> None:
    nan = {"name": "non_finite", "value": "nan", "attackers": 2, "join": True}
    last = play(config(EVERYBODY, attack=nan, aggregator={"name": aggregator})).last
    assert last.values["robust/num_rejected"] == last.values["robust/num_attackers"] == 2
    assert last.state.model is not None and all(torch.isfinite(tensor).all() for tensor in last.state.model.values())


def test_an_attack_begins_when_it_is_told_to() -> None:
    attacked = play(config(EVERYBODY, attack={**SIGN_FLIP, "begins": 3})).reports
    honest = play(config(EVERYBODY, attack={**SIGN_FLIP, "begins": 100})).reports
    for step, differs in ((2, False), (3, True)):
        left, right = attacked[step].state.model, honest[step].state.model
        assert left is not None and right is not None
        assert differ(left, right) is differs


def test_the_success_of_a_backdoor_is_measured_on_images_with_the_trigger() -> None:
    backdoor = {"name": "backdoor", "attackers": 4, "join": True, "target": 3, "fraction": 0.8}
    longer = {**EVERYBODY, "rounds": 25}
    attacked, honest = play(config(longer, attack=backdoor)).last.values, play(config(longer)).last.values
    assert attacked["attack/success"] > 0.3
    assert "attack/success" not in honest
    assert attacked["test/accuracy"] > 0.3


def test_poisoning_leaves_honest_examples_alone() -> None:
    from orchestrator.adversary import adversary, poisoned

    ready = prepare(load_experiment(config(EVERYBODY, attack={"name": "flip_all", "attackers": 2})).experiment)
    attackers = adversary(ready)
    assert attackers is not None and len(attackers.among) == 2
    changed = poisoned(ready, attackers)
    assert ready.partition is not None and changed.partition is not None
    for client in range(CLIENTS):
        before = ready.dataset.train_y[ready.partition.rows(client)]
        after = changed.dataset.train_y[changed.partition.rows(client)]
        assert (after == (9 - before if client in attackers.among else before)).all()


REFUSED = [
    ({"aggregator": {"name": "krum", "num_byzantine": 3}}, r"strategy\.aggregator: krum: n=4 .* n >= 2f \+ 3 = 9"),
    ({"attack": {"name": "sign_flip", "attackers": 7}}, r"strategy\.attack: 7 attackers leave nobody honest among 7"),
    ({"attack": {"name": "noise"}}, r"strategy\.attack\.name: got 'noise', which attacks an output layer"),
    ({"aggregator": {"name": "medain"}}, r"strategy\.aggregator\.name: got 'medain', expected one of mean, median, "),
    ({"aggregator": {"name": "median", "radius": 3}}, r"strategy\.aggregator\.radius"),
]


@pytest.mark.parametrize("changes, message", REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_meant_is_refused_before_anything_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(load_experiment(config(**changes)).experiment)
