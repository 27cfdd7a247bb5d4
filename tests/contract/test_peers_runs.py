"""Runs without a server: any workers give the same bits, a run that is cut goes on as if it had not been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from orchestrator.engines import peers as engine
from orchestrator.engines.mailbox import Links
from orchestrator.engines.peers import PEERS
from tests.contract.federated_plays import Shuffled, play, same

PEERS_HONEST = 6
ADAM = {"name": "adam", "lr": 0.01}
LIVELY = {
    "pacing": {"kind": "asynchronous", "max_age": 3},
    "network": {"latency": {"kind": "lognormal", "median_s": 0.02, "sigma": 0.5}, "loss": 0.2},
    "behaviour": {"speed": {"kind": "lognormal", "sigma": 0.6}, "dropout": 0.1},
    "partners": {"kind": "random", "count": 2},
}


def config(**changes: Any) -> dict[str, Any]:
    """Return an experiment on 90 digits; `changes` are fields of `strategy`, or sections beside it."""
    beside = {key: changes.pop(key) for key in ("data", "model", "evaluate", "seed", "cluster") if key in changes}
    return {
        "name": "peers",
        "seed": 4,
        "data": {"name": "digits", "limit": 90, "partition": {"kind": "iid", "clients": PEERS_HONEST}},
        "model": {"name": "mlp", "hidden": [5]},
        "strategy": {
            "kind": "peers",
            "algorithm": {"name": "gossip", "iterations": 4},
            "client": {"steps": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
            **changes,
        },
        "evaluate": {"every": 2},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        **beside,
    }


def bristle(**changes: Any) -> dict[str, Any]:
    """Return peers with a frozen body, two classes each, and an attacker."""
    partition = {"kind": "classes", "clients": PEERS_HONEST, "per_client": 3, "examples": 3}
    return config(
        data={"name": "digits", "partition": partition},
        model={"target": "tests.contract.toy_bodies:frozen_mlp"},
        **{
            "algorithm": {"name": "bristle", "iterations": 4, "test_examples": 4},
            "client": {"steps": 1, "batch_size": 3, "optimizer": {**ADAM, "weight_decay": 0.005}},
            "attack": {"name": "flip_shift", "attackers": 2, "join": True},
            **changes,
        },
    )


CASES: dict[str, Mapping[str, Any]] = {
    "synchronous on a ring": config(topology={"kind": "ring"}),
    "asynchronous, lossy and late": config(**LIVELY, client={"steps": 1, "batch_size": 4, "optimizer": ADAM}),
    "robust against attackers that join": config(
        aggregator={"name": "trimmed_mean", "pre": [{"name": "nnm"}]},
        attack={"name": "optimal_inner_product_manipulation", "attackers": 2, "join": True},
    ),
    "attackers among them": config(
        aggregator={"name": "centered_clipping", "radius": 1.0}, attack={"name": "mimic", "attackers": 0.3},
        compression=[{"name": "bf16"}],
    ),
    "bristle": bristle(),
    "mozi against what is near and wrong": config(
        algorithm={"name": "mozi", "iterations": 4, "examples": 5},
        attack={"name": "inner_product_manipulation", "attackers": 2, "join": True},
    ),
    "gossip of output layers against noise": bristle(
        algorithm={"name": "gossip", "iterations": 4}, attack={"name": "noise", "attackers": 2, "join": True},
    ),
    "bristle against what pushes along its change": bristle(
        attack={"name": "fang_krum", "variant": "bristle", "attackers": 2, "join": True},
    ),
    "bristle against crafted layers": bristle(attack={"name": "foreign_class", "attackers": 2, "join": True}, **LIVELY),
}  # fmt: skip


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_workers_and_cuts_change_no_bit(settings: Mapping[str, Any]) -> None:
    whole = play(settings)
    same(whole, play(settings, Shuffled))
    cut = play(settings, cuts=(1, 3))
    same(whole._replace(reports=cut.reports[:1] + whole.reports[1:]), cut)
    assert whole.last.values["test/accuracy"] >= 0


def test_how_many_blocks_a_wave_is_cut_into_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = play(CASES["asynchronous, lossy and late"])
    monkeypatch.setattr(engine, "NUM_BLOCKS", 2)
    same(whole, play(CASES["asynchronous, lossy and late"]))


def test_a_free_rider_sends_its_victim_the_model_that_the_victims_last_steps_began_from() -> None:
    def states(iterations: int) -> Mapping[str, torch.Tensor]:
        algorithm = {"name": "gossip", "iterations": iterations, "mixing": "heard"}
        attack = {"name": "free_rider", "attackers": 2, "join": True}
        return play(config(algorithm=algorithm, attack=attack)).last.state.server[PEERS]

    once, twice = states(1), states(2)
    for name in (path.removeprefix("model/") for path in once if path.startswith("model/")):
        sent = once[f"model/{name}"][:PEERS_HONEST]
        begun = once[f"began/{name}"][:PEERS_HONEST]
        assert torch.equal(begun, begun[:1].expand_as(begun)) and not torch.equal(begun, sent)
        mixed = (sent.sum(0) + 2 * begun) / (PEERS_HONEST + 2)
        torch.testing.assert_close(twice[f"began/{name}"][:PEERS_HONEST], mixed)


def test_bytes_are_counted_on_every_link_lost_messages_included() -> None:
    last = play(config(topology={"kind": "ring"}, network={"loss": 0.3})).last
    links = Links.of(last.state.server)
    assert list(zip(links.sender, links.receiver, strict=True)) == sorted(
        (peer, (peer + step) % PEERS_HONEST) for peer in range(PEERS_HONEST) for step in (1, -1)
    )
    assert set(links.messages) == {4}
    assert last.values["comm/uplink_bytes"] == links.num_bytes / 4
    assert last.values["comm/num_lost"] < last.values["comm/num_messages"] == 12


def test_bristle_sends_and_changes_the_output_layer_alone() -> None:
    played = play(bristle())
    state = played.last.state
    assert set(state.server[PEERS]) >= {"consolidated", "shared_classes"}
    first = played.reports[0].state.model
    assert state.model is not None and first is not None
    changed = [name for name, tensor in state.model.items() if not torch.equal(tensor, first[name])]
    assert changed == ["output.weight"]
    shared = state.server[PEERS]["shared_classes"][:PEERS_HONEST, :PEERS_HONEST]
    assert shared[0].tolist() == [-1, 2, 1, 0, 0, 0]  # peer i owns the classes i to i + 2
    assert torch.equal(shared, shared.T)


def test_peers_that_flip_labels_move_bristle_less_than_a_mean() -> None:
    honest = {"attack": None, "client": {"steps": 1, "batch_size": 3, "optimizer": {"name": "adam", "lr": 0.01}}}
    many = {"name": "bristle", "iterations": 25, "test_examples": 6}
    flips = {"name": "flip_shift", "attackers": 6, "join": True}
    accuracy = {
        name: play(bristle(**{**honest, **changes})).last.values["test/accuracy"]
        for name, changes in {
            "bristle": {"algorithm": many},
            "bristle attacked": {"algorithm": many, "attack": flips},
            "mean attacked": {"algorithm": {"name": "gossip", "iterations": 25}, "attack": flips},
        }.items()
    }
    assert accuracy["bristle attacked"] > accuracy["mean attacked"] + 0.1
    assert accuracy["bristle attacked"] > accuracy["bristle"] - 0.1
