"""Whether the parts of a federated experiment go together, found with the data and the model at hand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from orchestrator.adversary import adversary
from orchestrator.config import Origins
from orchestrator.config.schema import Federated
from orchestrator.errors import Problem
from strategies.attacks import POISONINGS
from strategies.compression import build
from strategies.compression.error_feedback import insist_contractive
from strategies.federated.pacing import Synchronous
from strategies.partition import Drawn
from strategies.seeds import integer
from trainers.batched import refusal
from trainers.cohort.bodies import Bodies, SharedTensorsDiffer, body
from trainers.data.base import DataError
from trainers.local import LocalSettings
from trainers.models import ModelError, check
from trainers.peers.intruders import BY_CLASS

if TYPE_CHECKING:
    from orchestrator.preparing import Prepared


def federated_problems(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    """Yield what cannot be run: codecs, aggregated tensors, samplers, paces and traces that do not fit."""
    strategy = prepared.experiment.strategy
    assert isinstance(strategy, Federated)
    yield from _codecs(strategy, where)
    yield from _shared(prepared, where)
    yield from _virtual(prepared, where)
    yield from _batched(prepared, where)
    yield from _guard(prepared, where)


def _batched(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    """Refuse to train side by side what cannot be."""
    client, path = prepared.experiment.strategy.client, "strategy.client.vectorise"
    if client.vectorise != "batched":
        return
    why = "clients differ in the shape of their input"
    if prepared.dataset.client_shapes is None:
        why = refusal(prepared.model, LocalSettings.from_section(client.model_dump()), prepared.dataset)
    if why:
        yield Problem(where(path), path, f"got 'batched', but {why}", "strategy.client.vectorise=auto, or loop")


def _guard(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    """Hold attack and aggregator against each other, and against the number of clients of a step."""
    from orchestrator.engines.defence import guard
    from orchestrator.engines.virtual import virtual

    strategy = prepared.experiment.strategy
    section, attack = strategy.aggregator, strategy.attack
    owns_alone = section.name == "fltrust" or (attack is not None and attack.name in POISONINGS)
    if owns_alone and isinstance(prepared.partition, Drawn):
        path = "data.partition.kind"
        message = "got 'drawn', whose clients share examples, but one of them is to own some alone"
        yield Problem(where(path), path, message, "data.partition={kind: iid, clients: 10}")
        return
    if attack is not None and attack.name in BY_CLASS:
        path = "strategy.attack.name"
        message = f"got {attack.name!r}, which attacks an output layer that is sent alone"
        yield Problem(where(path), path, message, "strategy.kind=peers with algorithm: {name: bristle}")
        return
    path = "strategy.attack"
    try:
        attackers = adversary(prepared)
        path = "strategy.aggregator"
        made = guard(prepared)
        if made.defence is not None:
            pace = virtual(prepared, num_bytes=0).pace
            num = pace.cohort if isinstance(pace, Synchronous) else pace.buffer
            joining = attackers.num_joining if attackers is not None else 0
            made.defence.robust.check(num + joining, made.defence.num_byzantine)
    except DataError:
        return  # said elsewhere
    except ValueError as error:
        hint = "more clients a round, or strategy.aggregator.num_byzantine" if path.endswith("aggregator") else ""
        yield Problem(where(path), path, str(error), hint)


def _codecs(strategy: Federated, where: Origins) -> Iterator[Problem]:
    for name in ("compression", "downlink"):
        path = f"strategy.{name}"
        try:
            codec = build([section.model_dump() for section in getattr(strategy, name)])
            if name == "compression" and strategy.error_feedback:
                path = "strategy.error_feedback"
                insist_contractive(codec)
        except ValueError as error:
            yield Problem(where(path), path, str(error))
    if strategy.error_feedback and not strategy.compression:
        path, message = "strategy.error_feedback", "got true, but nothing is compressed"
        yield Problem(where(path), path, message, "give strategy.compression, or error_feedback: false")


def _shared(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    """Hold the pattern of aggregated tensors against every network that clients train."""
    experiment, path = prepared.experiment, "strategy.aggregate_keys"
    pattern = experiment.strategy.aggregate_keys
    try:
        re.compile(pattern or "")
    except re.error as error:
        message = f"got {pattern!r}, which is no regular expression: {error}"
        yield Problem(where(path), path, message, "a pattern for names of tensors, such as bias$")
        return
    first = body(prepared.model, prepared.dataset, pattern)
    names = ", ".join([*first.first_personal, *first.frozen][:6])
    if not first.shared:
        yield Problem(where(path), path, f"got {pattern!r}, which no tensor's name matches", f"names are {names}, ...")
        return
    if prepared.dataset.client_shapes is not None:
        yield from _shapes(prepared, where)
    whole = not first.first_personal and prepared.dataset.client_shapes is None
    if not whole and not experiment.evaluate.clients.held_out:
        message = "is 0, but tensors stay with their clients, so there is no whole model to test but theirs"
        yield Problem(
            where("evaluate.clients.held_out"), "evaluate.clients.held_out", message, "evaluate.clients.held_out=0.2"
        )


def _shapes(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    """Build the network of every shape of input, show each two examples, and compare what is to be aggregated."""
    experiment, dataset = prepared.experiment, prepared.dataset
    kind, path = experiment.data.partition.kind, "data.partition.kind"
    if kind != "column":
        message = f"got {kind!r}, which mixes examples of different clients, and clients differ in their shape"
        yield Problem(where(path), path, message, "data.partition={kind: column}")
        return
    section, pattern = experiment.model_section, experiment.strategy.aggregate_keys
    bodies = Bodies(section, dataset, integer(experiment.seed, "model"), pattern, torch.device("cpu"))
    try:
        for shape in dict.fromkeys(dataset.client_shapes or ()):
            check(bodies.of_shape(shape).model, bodies.of_shape(shape).inputs, section)
        bodies.check()
    except ModelError as error:
        yield Problem(where("model"), "model", f"for clients whose inputs are {shape}: {error.message}", error.hint)
    except SharedTensorsDiffer as error:
        path = "strategy.aggregate_keys"
        hint = "let strategy.aggregate_keys match tensors that all clients have in the same shape"
        yield Problem(where(path), path, str(error), hint)


def _virtual(prepared: Prepared, where: Origins) -> Iterator[Problem]:
    from orchestrator.engines.virtual import virtual
    from strategies.federated.pacing import Anarchic

    strategy = prepared.experiment.strategy
    try:
        pace, population, sampler = virtual(prepared, num_bytes=0)
    except DataError as error:
        yield Problem(where("strategy.behaviour"), "strategy.behaviour", error.message, error.hint)
        return
    except ValueError as error:
        yield Problem(where("strategy.pacing"), "strategy.pacing", str(error))
        return
    path = "strategy.sampler"
    if sampler.needs_losses and not isinstance(pace, Synchronous):
        message = "measures losses before each round, and this pacing has no rounds"
        yield Problem(where(path), path, message, "fresh_losses: false, or pacing: {kind: synchronous}")
    if isinstance(pace, Anarchic) and sampler.name != "uniform":
        message = f"got {sampler.name!r}, but in anarchic rounds clients come by themselves and nobody is chosen"
        yield Problem(where(path), path, message, "sampler: {name: uniform}, or pacing: {kind: buffered}")
    candidates = getattr(strategy.sampler, "candidates", math.inf)
    if isinstance(pace, Synchronous) and candidates < pace.starts:
        message = f"got {candidates}, expected at least the {pace.starts} clients that start a round"
        here = f"{path}.candidates"
        yield Problem(where(here), here, message, f"{here}={pace.starts}")
    outside = [client for client in sampler.among or () if client >= population.num_clients]
    if outside:
        message = f"names client {outside[0]}, but there are {population.num_clients}, counted from 0"
        yield Problem(where(path), path, message)
    if sampler.among is not None and isinstance(pace, Synchronous) and pace.cohort > len(sampler.among):
        path = "strategy.algorithm.cohort"
        message = f"got {strategy.algorithm.cohort}, but the sampler names {len(sampler.among)} clients"
        yield Problem(where(path), path, message, f"{path}={len(sampler.among)}")
