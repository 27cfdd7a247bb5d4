"""From the contributions of a step to one: attackers put theirs in place, a robust aggregator answers.

Attackers act here, beside the server, because the strongest of them see what every honest client sent. What they craft
is what the server would receive: it passes no codec, and the bytes counted for it are those of an honest update.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from orchestrator.adversary import Adversary, adversary, poisoned, with_probe
from orchestrator.config.schema import Federated
from orchestrator.preparing import Prepared
from strategies.attacks import Knowledge
from strategies.base import Fold, State, Tree
from strategies.federated.stacking import Stack
from strategies.partition import Drawn, Partition
from strategies.robust import Context, Robust, robust
from strategies.robust.line import moved_by
from strategies.seeds import generator, integer
from trainers.data.base import Dataset

AGGREGATE, ATTACK = "aggregate", "attack"
SLOTS = (AGGREGATE, ATTACK)
"""Slots of a run's server state: the last aggregate, and what attackers remember; no rule uses the names."""


class Defended(NamedTuple):
    """What a step's contributions come to.

    Args:
        fold: as if of a plain sum. state: the slots above. figures: by metric name.
    """

    fold: Fold
    state: State
    figures: dict[str, float]


class Rows(NamedTuple):
    """Contributions as vectors: rows [n, d], what each asks to count [n], and which are attackers' (bool [n])."""

    rows: Tensor
    weights: Tensor
    dishonest: Tensor


class Defence(NamedTuple):
    """Aggregates the contributions of a step, some of them attackers'.

    Args:
        robust: pre-aggregators and aggregator. num_byzantine: how many attackers it is to withstand.
        adversary: None when nobody attacks. num_clients: of the population; attackers that join come after it.
        root: the client that stands for the server's own data, if there is one. seed: the run's.
    """

    robust: Robust
    num_byzantine: int
    adversary: Adversary | None
    num_clients: int
    root: int | None
    seed: int

    @torch.no_grad()
    def combine(self, stack: Stack, state: State, step: int) -> Defended:
        """Aggregate.

        Args:
            state: the slots that the last step left. step: steps done before this one.

        Raises:
            ValueError: when there are too few contributions for the aggregator, or none that is finite.
        """
        trusted = [place for place, client in enumerate(stack.clients) if client == self.root]
        others = [place for place, client in enumerate(stack.clients) if client != self.root]
        if not others:
            raise ValueError("nobody but the server contributed")
        every = stack.rows()
        dishonest = self._dishonest([stack.clients[p] for p in others])
        given = Rows(every[others] if trusted else every, stack.weights[others], dishonest)
        context = Context(
            self.num_byzantine,
            center=state.get(AGGREGATE, {}).get("vector"),
            root=every[trusted[0]] if trusted else None,
            seed=integer(self.seed, "aggregator", step),
        )
        honest = _rows_of(given.rows, ~dishonest)
        seen, memory = self._attacked(given, honest, context, state.get(ATTACK, {}), step)
        combined = self.robust.combine(seen.rows, context._replace(weights=seen.weights.to(seen.rows)))
        figures = {
            "robust/num_attackers": float(seen.dishonest.sum()),
            "robust/num_rejected": float(combined.num_rejected),
        }
        if len(honest):
            mean = honest.mean(0)
            figures["robust/deviation"] = float((combined.vector - mean).norm() / mean.norm().clamp(min=1e-30))
        after = {AGGREGATE: {"vector": combined.vector}, **({ATTACK: dict(memory)} if memory else {})}
        fold = stack._replace(weights=seen.weights).fold(combined.vector, len(seen.rows))
        return Defended(fold, after, figures)

    def _dishonest(self, clients: Sequence[int]) -> Tensor:
        among = set(self.adversary.among) if self.adversary is not None else set()
        return torch.tensor([client in among or client >= self.num_clients for client in clients])

    def _attacked(self, given: Rows, honest: Tensor, context: Context, memory: Tree, step: int) -> tuple[Rows, Tree]:
        """Put crafted vectors in the attackers' places, and those of attackers that join after all others."""
        adversary = self.adversary
        if adversary is None or adversary.attack is None or step + 1 < adversary.begins:
            return given, memory
        num_among, joining = int(given.dishonest.sum()), adversary.num_joining
        seen = honest
        if not adversary.omniscient or not len(seen):
            seen = given.rows[given.dishonest]
        if not num_among + joining or not len(seen):
            return given, memory
        knowledge = Knowledge(
            num_among + joining,
            lambda vectors: self.robust.combine(vectors, context).vector,
            seed=integer(self.seed, "attack", step),
            previous=context.center,
            num_total=len(given.rows) + joining,
            moved_by=partial(moved_by, self.robust, context),
        )
        memory = adversary.attack.watch(memory, seen, knowledge)
        crafted = adversary.attack.apply(seen, knowledge._replace(memory=memory))
        rows = given.rows
        if num_among:
            rows = rows.clone()
            rows[given.dishonest] = crafted[:num_among]
        return Rows(
            torch.cat([rows, crafted[num_among:]]),
            torch.cat([given.weights, given.weights.mean().repeat(joining)]),
            torch.cat([given.dishonest, torch.ones(joining, dtype=torch.bool)]),
        ), memory


def _rows_of(rows: Tensor, wanted: Tensor) -> Tensor:
    """Return some rows, [k, d]: what was given where it is all of them."""
    return rows if wanted.all() else rows[wanted]


class Guard(NamedTuple):
    """What attack and defence change about a federated run.

    Args:
        dataset, partition: as the workers see them, poisoned where attackers poison.
        extras: who takes part in every step beside the population, by number, ascending.
        defence: None where workers may sum, since nobody looks at single contributions.
    """

    dataset: Dataset
    partition: Partition | Drawn
    extras: tuple[int, ...]
    defence: Defence | None
    adversary: Adversary | None

    @property
    def root(self) -> int | None:
        """The client that stands for the server's own data, if there is one."""
        return self.defence.root if self.defence is not None else None

    def summary(self) -> dict[str, Any]:
        """Return who attacks, for `partition.json`."""
        if self.adversary is None:
            return {}
        return {"attackers": {"among": list(self.adversary.among), "joining": self.adversary.num_joining}}


def guard(prepared: Prepared) -> Guard:
    """Return the attack and the defence of a federated experiment.

    Raises:
        ValueError: when an argument is refused, or there are too few clients for the aggregator.
    """
    experiment, partition = prepared.experiment, prepared.partition
    strategy = experiment.strategy
    assert isinstance(strategy, Federated) and partition is not None
    attackers = adversary(prepared)
    seen = prepared if attackers is None else poisoned(prepared, attackers)
    dataset = prepared.dataset if attackers is None else with_probe(seen.dataset, attackers)
    assert seen.partition is not None
    divided, root = seen.partition, None
    num_clients, section = partition.num_clients, strategy.aggregator
    chain = robust([one.model_dump() for one in section.pre], {"name": section.name, **section.arguments()})
    if chain.aggregator.needs_root:
        assert isinstance(divided, Partition)
        have, wanted = len(prepared.dataset.train_x), section.root_examples
        if wanted > have:
            raise ValueError(f"the server is to own {wanted} examples, but there are {have}: lower root_examples")
        root = divided.num_clients
        rng = generator(experiment.seed, "root examples")
        rows = np.sort(rng.choice(have, wanted, replace=False))
        divided = Partition(
            np.concatenate([divided.order, rows]), np.append(divided.offsets, len(divided.order) + len(rows))
        )
    extras = tuple(range(num_clients, divided.num_clients))
    plain = section.name == "mean" and not section.pre and (attackers is None or attackers.attack is None)
    if plain:
        return Guard(dataset, divided, extras, None, attackers)
    num_byzantine = section.num_byzantine
    cohort = strategy.algorithm.cohort
    cohort = num_clients if cohort == "all" else cohort
    if num_byzantine is None:
        num_byzantine = attackers.expected(cohort, num_clients) if attackers is not None else 0
    defence = Defence(chain, num_byzantine, attackers, num_clients, root, experiment.seed)
    return Guard(dataset, divided, extras, defence, attackers)
