"""Whether the parts of an experiment without a server go together, found with the data and the model at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from orchestrator.config import Origins
from orchestrator.config.peers import Peers
from orchestrator.errors import Problem
from strategies.compression import build
from strategies.robust import robust
from trainers.data.base import CLASSIFICATION, DataError
from trainers.models import ModelError
from trainers.peers.intruders import BY_CLASS

if TYPE_CHECKING:
    from orchestrator.engines.society import Outline
    from orchestrator.preparing import Prepared

LEAVE_OUT = ("top-k", "random-k", "powersgd", "signsgd", "terngrad", "fedzip")
"""Codecs of changes, which leave out most of what they are given: a peer sends its whole model."""


def peers_problems(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    """Yield what cannot be run: models, links, messages and aggregators that do not fit."""
    strategy = prepared.experiment.strategy
    assert isinstance(strategy, Peers)
    found = [*_alone(prepared, strategy, where)]
    yield from found
    if not found:
        yield from _together(prepared, where)


def _alone(prepared: Prepared, strategy: Peers, where: Origins) -> Iterator[Problem]:
    dataset = prepared.dataset
    if dataset.client_shapes is not None:
        message = "clients differ in the shape of their input, and peers exchange whole models"
        yield Problem(where("data"), "data", message, "use data of one shape")
    section, path = strategy.aggregator, "strategy.aggregator"
    if strategy.algorithm.name != "gossip" and (section.name != "mean" or section.pre):
        message = f"got {section.name!r}, but {strategy.algorithm.name.capitalize()} integrates models itself"
        yield Problem(where(path), path, message, "leave strategy.aggregator out, or algorithm: {name: gossip}")
    try:
        chain = robust([one.model_dump() for one in section.pre], {"name": section.name, **section.arguments()})
        if chain.aggregator.needs_root:
            message = f"got {section.name!r}, which trusts a server's data, and here is no server"
            yield Problem(where(path), path, message, "take another aggregator, such as monna or centered_clipping")
    except ValueError as error:
        yield Problem(where(path), path, str(error))
    if prepared.experiment.cluster.device != "cpu":
        path = "cluster.device"
        message = f"got {prepared.experiment.cluster.device!r}, but peers are trained on the CPU"
        yield Problem(where(path), path, message, "cluster.device=cpu")
    if strategy.client.vectorise == "batched":
        path = "strategy.client.vectorise"
        yield Problem(where(path), path, "got 'batched', but peers are trained one by one", f"{path}=auto")
    if strategy.behaviour.link.uplink_bytes_per_s or strategy.behaviour.link.downlink_bytes_per_s:
        path = "strategy.behaviour.link"
        message = "is a client's way to a server, and here is none"
        yield Problem(where(path), path, message, "strategy.network.uplink_bytes_per_s")
    for codec in strategy.compression:
        if codec.name in LEAVE_OUT:
            path = "strategy.compression"
            message = f"got {codec.name!r}, which is made for changes of a model; peers send the model itself"
            yield Problem(where(path), path, message, "such as [{name: bf16}], [{name: int8}] or [{name: qsgd}]")
    try:
        build([codec.model_dump() for codec in strategy.compression])
    except ValueError as error:
        yield Problem(where("strategy.compression"), "strategy.compression", str(error))
    if prepared.experiment.evaluate.clients.held_out or prepared.experiment.evaluate.clients.keep_best:
        path = "evaluate.clients.held_out"
        message = "peers are measured on the test data, each with its own model"
        yield Problem(
            where(path), path, message, "leave out held_out and keep_best; evaluate.clients.sample says how many"
        )
    if strategy.attack is not None and strategy.attack.name.startswith("optimal_"):
        path, alone = "strategy.attack", strategy.attack.knowledge == "own"
        why = "sees only what attackers have trained" if alone else "has no aggregator to ask, since peers run Bristle"
        if alone or strategy.algorithm.name == "bristle":
            message = (
                f"got {strategy.attack.name!r}, which tries strengths against the victim's aggregator, but it {why}"
            )
            hint = "knowledge: omniscient with algorithm: {name: gossip}, or an attack that is not optimal_"
            yield Problem(where(path), path, message, hint)
    if strategy.algorithm.name == "bristle" and dataset.task != CLASSIFICATION:
        path = "strategy.algorithm.name"
        message = f"got 'bristle', which learns classes; {dataset.name} has none"
        yield Problem(where(path), path, message, "strategy.algorithm.name=gossip")


def _together(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    from orchestrator.engines.society import outline
    from orchestrator.engines.virtual import behaviour_of
    from strategies.peers.network import network
    from strategies.peers.partners import partners

    experiment = prepared.experiment
    strategy, path = experiment.strategy, "strategy.behaviour"
    try:
        behaviour_of(experiment)
        path = "strategy.network"
        network(experiment.seed, strategy.network.model_dump())
        path = "strategy"
        made = outline(prepared)
        graph = made.graph
        yield from _by_class(made, strategy, where)
        yield from _rotated(made, strategy, where)
        path = "strategy.partners"
        partners(strategy.partners.kind, graph, experiment.seed, count=strategy.partners.count)
    except ModelError as error:
        yield Problem(where("model"), "model", error.message, error.hint)
    except DataError as error:
        yield Problem(where(path), path, error.message, error.hint)
    except ValueError as error:
        yield Problem(where(path), path, str(error))


def _by_class(made: Outline, strategy: Peers, where: Origins) -> Iterator[Problem]:
    """Refuse attacks on the weights of single classes where peers send anything but an output layer's matrix."""
    if strategy.attack is None or strategy.attack.name not in BY_CLASS or strategy.algorithm.name == "bristle":
        return
    if made.parts is None or made.parts.head.bias:
        path = "strategy.attack.name"
        message = f"got {strategy.attack.name!r}, which attacks an output layer that is sent alone"
        hint = "a model without a bias in its output layer with model.pretrain.freeze for all others, or another attack"
        yield Problem(where(path), path, message, hint)


def _rotated(made: Outline, strategy: Peers, where: Origins) -> Iterator[Problem]:
    """Refuse to turn round the foreign classes of a victim that has only one of them."""
    attack = strategy.attack
    if attack is None or attack.name != "foreign_class" or attack.poison != "rotate":
        return
    labels, num_classes = made.dataset.train_y, made.dataset.num_classes
    honest = sorted({*range(made.partition.num_clients)} - {*made.dishonest})
    lacking = [peer for peer in honest if len(np.unique(labels[made.partition.rows(peer)])) == num_classes - 1]
    if lacking:
        path = "strategy.attack.poison"
        told = f"peer {lacking[0]}" + (f" and {len(lacking) - 1} more lack" if len(lacking) > 1 else " lacks")
        message = f"got 'rotate', which gives foreign classes each other's names, but {told} one class alone"
        yield Problem(
            where(path), path, message, "poison: erase, negate or noise, or data.partition with fewer classes"
        )
