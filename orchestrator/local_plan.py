"""What a local-learning run would do, before it does it: modules, auxiliary networks, pace, bytes and memory.

The modules are measured in this process, on one batch; nothing is started. Left out of the pace: transfers, which go on
beside the computation, and cores that workers share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from orchestrator.config import Loaded
from orchestrator.config.schema import Experiment, LocalLearning
from orchestrator.gang_plan import GangPlan, common, milliseconds
from orchestrator.local_stages import LocalStages, divide, settings_of
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from trainers import optimizers
from trainers.decoupled.links import MARK_BYTES
from trainers.decoupled.recovering import most_bytes

HINT = "strategy.modules=N, cluster.resources_per_worker.CPU=0.5, or cluster.workers=0"


@dataclass(frozen=True, kw_only=True)
class LocalPlan(GangPlan):
    """What a local-learning run would do.

    Args:
        memory: bytes of each process. held_bytes: those of it that each worker holds at most for one that is lost.
    """

    stages: LocalStages
    memory: tuple[int, ...]
    held_bytes: tuple[int, ...]

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """As `GangPlan.sections`."""
        strategy = self.experiment.strategy
        assert isinstance(strategy, LocalLearning)
        yield f"modules of {strategy.rule.name}, measured on a batch on this machine", list(self._modules())
        yield "one batch, transfers left out", list(self._batch())

    def _modules(self) -> Iterator[str]:
        heads = f"{'parameters':>12}  {'auxiliary':>12}  {'forward':>10}  {'learning':>10}  {'saved':>10}"
        yield f"{'worker':>6}  {'module':>6}  {heads}  of the model"
        counts = [f" x {count}" if count > 1 else "" for count in self.stages.replicas]
        owners = [f"{worker}{counts[worker]}" for worker, share in enumerate(self.stages.shares) for _ in range(share)]
        for index, (worker, cost) in enumerate(zip(owners, self.stages.costs, strict=True)):
            names = cost.names[:1] if len(cost.names) < 2 else (cost.names[0], "...", cost.names[-1])
            yield (
                f"{worker:>6}  {index:>6}  {cost.num_parameters:>12,}  {cost.num_auxiliary:>12,}  "
                f"{milliseconds(cost.forward_s):>10}  {milliseconds(cost.learn_s):>10}  {size(cost.saved_bytes):>10}  "
                + " ".join(names)
            )

    def _batch(self) -> Iterator[str]:
        stages = self.stages
        slowest, alone = max(stages.batch_s), sum(cost.forward_s + cost.learn_s for cost in stages.costs)
        extra = sum(cost.num_auxiliary for cost in stages.costs)
        sent = sum(stages.sent_bytes) + MARK_BYTES * len(stages.sent_bytes)
        yield f"{'parameters':<28}{self.num_parameters:>14,}   and {extra:,} of auxiliary networks"
        yield f"{'time':<28}{milliseconds(slowest):>14}   {milliseconds(alone)} by one process"
        share = slowest * sum(stages.replicas)
        yield f"{'waiting':<28}{1 - alone / share:>14.1%}   of the workers' time: modules are not equal"
        yield f"{'sent between workers':<28}{size(sent):>14}   activations and marks; no gradients"
        kept, whole = max(cost.saved_bytes for cost in stages.costs), stages.backpropagation_bytes
        than = f"; backpropagation keeps {size(whole)}" if whole is not None else ""
        yield f"{'kept for backward':<28}{size(kept):>14}   of a module at most{than}"
        if any(self.held_bytes):
            told = ", ".join(map(size, self.held_bytes[:-1]))
            yield f"{'held for a lost worker':<28}{told:>14}   at most; batches, and evaluations under way"
        yield f"{'memory of a worker':<28}{', '.join(map(size, self.memory)):>14}   weights, optimizer, activations"


def plan_local(loaded: Loaded, prepared: Prepared) -> LocalPlan:
    """Work out what a local-learning run would do.

    Raises:
        ConfigError: when rule and model do not suit each other. PlacementError: when the cluster does not answer.
    """
    experiment, dataset = loaded.experiment, prepared.dataset
    strategy = experiment.strategy
    assert isinstance(strategy, LocalLearning)
    stages = divide(prepared, loaded.where)
    dtype = getattr(torch, experiment.model.dtype)
    copies = 2 + optimizers.copies(strategy.optimizer.model_dump(), dtype)
    held = strategy.buffer if strategy.regime == "asynchronous" else strategy.queue
    memory, held_bytes = [], _held_bytes(experiment, stages)
    for worker in range(len(stages.shares)):
        own = stages.of_worker(worker)
        weights = sum(cost.num_parameters + cost.num_auxiliary for cost in own) * dtype.itemsize
        waiting = held * stages.sent_bytes[worker - 1] if worker else 0
        count = stages.replicas[worker]
        rows = (max(cost.saved_bytes for cost in own) + waiting + held_bytes[worker]) // count
        memory += [int(copies * weights) + rows] * count
    fields = common(loaded, prepared, memory, dataset.num_bytes, "workers")
    return LocalPlan(**fields, hint=HINT, stages=stages, memory=tuple(memory), held_bytes=held_bytes)


def _held_bytes(experiment: Experiment, stages: LocalStages) -> tuple[int, ...]:
    """Return what each worker holds at most of what it sent; nothing in one process, or where all start again."""
    strategy = experiment.strategy
    assert isinstance(strategy, LocalLearning)
    if not strategy.replaces or not experiment.num_workers:
        return (0,) * len(stages.shares)
    settings, every = settings_of(experiment, stages.shares), experiment.checkpoint_every
    sent = zip(stages.sent_bytes, stages.test_bytes, strict=True)
    return (*(most_bytes(settings, every, batch, evaluation) for batch, evaluation in sent), 0)
