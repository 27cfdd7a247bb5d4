"""Which modules each worker of a local-learning run owns, and what a batch is then expected to cost.

The rule makes the modules, and where it is told how many, cuts the model by counted multiplications. Each is measured
once on a batch (`trainers.decoupled.costs`); where there are more modules than workers, they are dealt out in a row
such that the slowest worker is as fast as it can be. As no worker waits for a later one, the slowest sets the pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.config import Origins
from orchestrator.config.memory import plain
from orchestrator.config.schema import Experiment, LocalLearning
from orchestrator.errors import ConfigError, Problem
from orchestrator.gang_settings import shared
from orchestrator.memory_checks import insist_parts
from orchestrator.preparing import Prepared
from strategies.pipeline import balance
from trainers.decoupled.costs import ModuleCost, backpropagation_bytes, measure
from trainers.decoupled.settings import Settings, build
from trainers.models import ModelError


class LocalStages(NamedTuple):
    """A rule's modules and their workers.

    Args:
        shares: modules of each worker. costs: of each module, for a batch. stream: as of `strategies.local.LocalRule`.
        backpropagation_bytes: that autograd would keep of the whole model for a batch; None where that is impossible.
        replicas: processes of each worker.
    """

    shares: tuple[int, ...]
    costs: tuple[ModuleCost, ...]
    stream: str
    backpropagation_bytes: int | None
    replicas: tuple[int, ...]

    def of_worker(self, worker: int) -> tuple[ModuleCost, ...]:
        start = sum(self.shares[:worker])
        return self.costs[start : start + self.shares[worker]]

    @property
    def batch_s(self) -> list[float]:
        """Seconds that each worker needs for a batch, divided among its processes."""
        return [
            sum(c.forward_s + c.learn_s for c in self.of_worker(worker)) / count
            for worker, count in enumerate(self.replicas)
        ]

    @property
    def sent_bytes(self) -> list[int]:
        """Bytes of what each worker but the last sends for a batch, marks left out."""
        return [self.of_worker(worker)[-1].sent_bytes for worker in range(len(self.shares) - 1)]

    @property
    def test_bytes(self) -> list[int]:
        """Bytes of what each worker but the last sends for an evaluation."""
        return [self.of_worker(worker)[-1].test_bytes for worker in range(len(self.shares) - 1)]


def divide(prepared: Prepared, where: Origins | None = None) -> LocalStages:
    """Make the modules, measure them, and deal them out.

    Raises:
        ConfigError: when rule and model do not suit each other, or there are fewer modules than workers.
    """
    experiment, origins = prepared.experiment, where or Origins()
    strategy = experiment.strategy
    assert isinstance(strategy, LocalLearning)
    settings = settings_of(experiment, ())
    try:
        built = build(settings, prepared.dataset)
        threads = experiment.cluster.threads_per_worker
        costs = measure(built, settings, prepared.dataset, threads)
        whole = backpropagation_bytes(built, settings, prepared.dataset, threads)
        built.names()
    except ModelError as error:
        raise ConfigError([Problem(origins("model"), "model", error.message, error.hint)]) from error
    except ValueError as error:
        path = _blamed(str(error), strategy)
        raise ConfigError([Problem(origins(path), path, str(error), _HINTS.get(path, ""))]) from error
    if len(costs) < strategy.modules:
        path = "strategy.modules"
        message = f"got {strategy.modules} processes for the {len(costs)} modules that {strategy.rule.name} makes"
        raise ConfigError([Problem(origins(path), path, message, f"at most {len(costs)}, or a deeper model")])
    named = {index: (f"modules.{index}", module) for index, module in enumerate(built.modules)}
    insist_parts(strategy.memory, named, origins)
    shares = deal([cost.forward_s + cost.learn_s for cost in costs], strategy.processes)
    return LocalStages(shares, tuple(costs), built.rule.stream, whole, strategy.processes)


def deal(costs: Sequence[float], processes: Sequence[int]) -> tuple[int, ...]:
    """Return how many modules, in a row, each worker owns, such that the slowest is fastest.

    Args:
        costs: of each module. processes: of each worker, which divide its costs.
    """
    if len(set(processes)) == 1:
        return tuple(balance(costs, len(processes)))
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for worker, count in enumerate(processes):
        ends = range(worker + 1, len(costs) - (len(processes) - worker - 1) + 1)
        best = {
            end: min(
                (max(slowest, sum(costs[start:end]) / count), (*shares, end - start))
                for start, (slowest, shares) in best.items()
                if start < end
            )
            for end in ends
        }
    return best[len(costs)][1]


def settings_of(experiment: Experiment, shares: tuple[int, ...]) -> Settings:
    """Return what every worker is told."""
    strategy = experiment.strategy
    assert isinstance(strategy, LocalLearning)
    return Settings(
        **shared(experiment),
        rule=strategy.rule_arguments(),
        shares=shares,
        batch_size=strategy.batch_size,
        steps=strategy.steps,
        evaluate_batch=experiment.evaluate.batch_size,
        queue=1 if strategy.regime == "asynchronous" else strategy.queue,
        regime=strategy.regime,
        buffer=strategy.buffer,
        max_reuse=strategy.max_reuse,
        quota=experiment.evaluate_every,
        memory=plain(strategy.memory),
        replicas=strategy.processes if max(strategy.processes) > 1 else (),
        slowdown=tuple(strategy.slowdown.get(worker, 1.0) for worker in range(strategy.modules)),
    )


def summarise(experiment: Experiment, stages: LocalStages) -> dict[str, Any]:
    """Return who owns what and what is expected of a batch, ready for JSON."""
    strategy = experiment.strategy
    assert isinstance(strategy, LocalLearning)
    return {
        "kind": "local-modules",
        "rule": strategy.rule_arguments(),
        "stream": stages.stream,
        "shares": list(stages.shares),
        "replicas": list(stages.replicas),
        "modules": [{**cost._asdict(), "names": list(cost.names)} for cost in stages.costs],
        "sent_bytes": stages.sent_bytes,
        "backpropagation_bytes": stages.backpropagation_bytes,
        "predicted_s": max(stages.batch_s),
    }


_HINTS = {
    "strategy.modules": "fewer modules, or a deeper model",
    "model": "models of local learning are sequences of layers: mlp, cnn, resnet, vgg, or your own with "
    "pipeline_layers()",
}


def _blamed(message: str, strategy: LocalLearning) -> str:
    """Return the field that an error of rule or model is about."""
    if message.startswith("modules must be") and getattr(strategy.rule, "modules", 0) is None:
        return "strategy.modules"
    argument = message.split(" ", 1)[0]
    if argument in type(strategy.rule).model_fields:
        return f"strategy.rule.{argument}"
    return "model" if "unit" in message or "model" in message or "module" in message else "strategy.rule"
