"""What cannot be combined with local learning, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.checks import Finding
from orchestrator.config.inputs import Iid
from orchestrator.config.local_learning import LocalLearning
from orchestrator.config.schema import Cluster, DataSection, Experiment, Federated, Shakespeare


def _local(experiment: Experiment) -> Iterator[Finding]:
    strategy, data = experiment.strategy, experiment.data
    if not isinstance(strategy, LocalLearning):
        return
    if isinstance(data, Shakespeare):
        message = (
            "got 'tiny-shakespeare', which is text to be predicted, but rules of local learning learn from classes"
        )
        yield Finding(
            ("data", "name"), message, "data={name: digits}, or strategy.kind=pipeline", (("strategy", "kind"),)
        )
    elif isinstance(data, DataSection) and data.partition != Iid():
        message = f"got {data.partition.kind!r}, which divides examples among clients; local learning has none"
        yield Finding(("data", "partition"), message, "leave data.partition out", (("strategy", "kind"),))
    first = experiment.model.pretrain
    if first is not None and first.freeze is not None:
        message = f"got {first.freeze!r}, but every module's parameters are trained by its own loss"
        yield Finding(("model", "pretrain", "freeze"), message, "model.pretrain.freeze=null", (("strategy", "kind"),))
    yield from _places(experiment, strategy)


def _places(experiment: Experiment, strategy: LocalLearning) -> Iterator[Finding]:
    cluster = experiment.cluster
    if cluster.workers not in (0, Cluster().workers, strategy.num_ranks):
        message = f"got {cluster.workers}, but each of the {strategy.modules} modules is one process"
        if strategy.num_ranks > strategy.modules:
            message = f"got {cluster.workers}, but {strategy.modules} modules with their replicas are "
            message += f"{strategy.num_ranks} processes"
        hint = f"cluster.workers={strategy.num_ranks}, or 0 for all of them in this process"
        yield Finding(("cluster", "workers"), message, hint, (("strategy", "modules"),))
    if cluster.device == "cuda" and cluster.workers:
        message = "got 'cuda', but modules send activations through gloo, which takes tensors of the CPU"
        yield Finding(("cluster", "device"), message, "cluster.device=cpu, or cluster.workers=0")


def _regime(experiment: Experiment) -> Iterator[Finding]:
    """Refuse what only the other regime reads."""
    strategy = experiment.strategy
    if not isinstance(strategy, LocalLearning):
        return
    regime = (("strategy", "regime"),)
    if strategy.regime == "asynchronous" and strategy.queue != LocalLearning.model_fields["queue"].default:
        message = f"got {strategy.queue}, but asynchronous workers have a ring buffer, not a queue"
        yield Finding(("strategy", "queue"), message, "strategy.buffer=N, or strategy.regime=lossless", regime)
    for name in ("buffer", "max_reuse", "slowdown"):
        value = getattr(strategy, name)
        if strategy.regime == "lossless" and value != LocalLearning.model_fields[name].default:
            message = f"got {value!r}, but a lossless run has no ring buffer: each batch is used once, in order"
            if name == "slowdown":
                message = f"got {value!r}, but what a lossless run computes does not depend on speed"
            yield Finding(("strategy", name), message, "strategy.regime=asynchronous", regime)
    for worker in strategy.slowdown:
        if worker >= strategy.modules:
            message = f"got worker {worker}, expected 0 to {strategy.modules - 1}"
            yield Finding(("strategy", "slowdown"), message, "", (("strategy", "modules"),))
    if strategy.regime == "asynchronous" and strategy.rule.name in ("counter-current", "noprop"):
        why = (
            "sends the classes down between batches" if strategy.rule.name == "counter-current" else "sends nothing on"
        )
        message = f"got 'asynchronous', but {strategy.rule.name} {why}, so there is nothing that a buffer could hold"
        yield Finding(("strategy", "regime"), message, "strategy.regime=lossless", (("strategy", "rule", "name"),))
    if strategy.slowdown and experiment.cluster.workers:
        message = "got slow workers, but between processes real speed decides"
        yield Finding(("strategy", "slowdown"), message, "cluster.workers=0, for a clock on which they are slow")


def _replicas(experiment: Experiment) -> Iterator[Finding]:
    """Refuse replicas where rows of a batch cannot be learned from apart."""
    strategy, here = experiment.strategy, ("strategy", "replicas")
    if not isinstance(strategy, LocalLearning):
        return
    for worker in strategy.replicas:
        if worker >= strategy.modules:
            message = f"got worker {worker}, expected 0 to {strategy.modules - 1}"
            yield Finding(here, message, "", (("strategy", "modules"),))
    if set(strategy.replicas.values()) <= {1}:
        return
    if strategy.regime == "asynchronous":
        message = "got several processes of a worker, but in an asynchronous run they would have different batches"
        yield Finding(here, message, "strategy.regime=lossless", (("strategy", "regime"),))
    if strategy.rule.name not in ("auglocal", "dgl"):
        message = (
            f"got several processes of a worker, but {strategy.rule.name} does not learn by the mean of a loss of each "
            "example, which rows of a batch could be divided for"
        )
        yield Finding(here, message, "strategy.rule.name=auglocal, or dgl", (("strategy", "rule", "name"),))
    if strategy.memory is not None:
        message = "got several processes of a worker, but each would remember other ranges of activations in 8 bits"
        yield Finding(here, message, "strategy.memory=null, or strategy.replicas={}", (("strategy", "memory"),))
    most = max(strategy.replicas.values())
    if strategy.batch_size < 2 * most:
        message = f"got {most} processes for batches of {strategy.batch_size}, which leaves some fewer than 2 examples"
        yield Finding(here, message, f"strategy.batch_size={2 * most} or more", (("strategy", "batch_size"),))


def _alone(experiment: Experiment) -> Iterator[Finding]:
    """Refuse to start a lost worker again alone where it would not find again what it was given."""
    strategy, here = experiment.strategy, ("strategy", "recovery")
    if not isinstance(strategy, LocalLearning) or strategy.recovery == "together":
        return
    hint = "strategy.recovery=together"
    if strategy.regime == "asynchronous":
        message = (
            "got 'alone', but what an asynchronous worker was given depended on its speed, and does not come again"
        )
        yield Finding(here, message, hint, (("strategy", "regime"),))
    if max(strategy.processes) > 1:
        message = "got 'alone', but the processes of one worker are joined in a group, which cannot lose one"
        yield Finding(here, message, hint, (("strategy", "replicas"),))
    if strategy.rule.name == "counter-current":
        message = "got 'alone', but counter-current sends the classes down, and what was sent down is not held"
        yield Finding(here, message, hint, (("strategy", "rule", "name"),))


def _client_rule(experiment: Experiment) -> Iterator[Finding]:
    """Refuse rules where clients cannot train by one."""
    client = getattr(experiment.strategy, "client", None)
    rule = getattr(client, "rule", None)
    if rule is None:
        return
    here, hint = ("strategy", "client", "rule"), "strategy.client.rule=null"
    if not isinstance(experiment.strategy, Federated):
        message = f"got {rule.name!r}, but only clients of a federated strategy train by a rule of local learning"
        yield Finding(here, message, hint, (("strategy", "kind"),))
    elif isinstance(experiment.data, Shakespeare):
        message = f"got {rule.name!r}, but rules of local learning learn from classes, and this data is text"
        yield Finding(here, message, hint, (("data", "name"),))
    elif rule.name not in ("auglocal", "dgl", "predsim"):
        message = f"got {rule.name!r}, but clients train by rules that leave the model's own inference as it is"
        yield Finding(here, message, "auglocal, dgl or predsim")


LOCAL_CHECKS = (_local, _regime, _replicas, _alone, _client_rule)
"""Checks of experiments of local learning."""
