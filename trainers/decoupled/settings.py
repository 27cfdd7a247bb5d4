"""What every worker of a local-learning run is told, in plain values; each works out its own part from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from strategies import local
from strategies.local import LocalModule, LocalRule
from strategies.seeds import integer
from trainers import models
from trainers.activations import Saver
from trainers.data.base import Dataset
from trainers.gradients import Shaping
from trainers.order import Order


class Settings(NamedTuple):
    """The training of a network by a rule of local learning.

    Args:
        model: the experiment's `model` section. seed: the run's. model_seed: the model's own.
        rule: `name` and the arguments of `strategies.local.rule`.
        shares: how many of the rule's modules each worker owns, in order; empty before that is known.
        batch_size, steps: of the whole run; a step is one batch of each module.
        evaluate_batch: test examples of one forward pass.
        optimizer: name and arguments, of each module's own. learning_rate: its schedule, by the batch's number.
        queue: batches that may be between two workers. regime: `lossless`, each batch once and in order; or
            `asynchronous`, with a ring buffer before each worker (`replaying`).
        buffer, max_reuse: of that buffer, see `strategies.local.replay`. quota: steps that every worker does between
            two evaluations. memory: how activations are kept, see `trainers.activations`; None as they are.
        slowdown: of each worker on the clock of a run in one process; empty for none.
        clip_value, gradient_noise: see `trainers.gradients`.
        replicas: processes of each worker, which share its batches (`replicas`); empty for one each.
    """

    model: Mapping[str, Any]
    seed: int
    model_seed: int
    rule: Mapping[str, Any]
    shares: tuple[int, ...]
    batch_size: int
    steps: int
    evaluate_batch: int
    optimizer: Mapping[str, Any]
    learning_rate: Mapping[str, Any]
    queue: int
    regime: str = "lossless"
    buffer: int = 1
    max_reuse: int | None = None
    quota: int = 1
    slowdown: tuple[float, ...] = ()
    memory: Mapping[str, Any] | None = None
    clip_value: float | None = None
    gradient_noise: Mapping[str, Any] | None = None
    replicas: tuple[int, ...] = ()

    @property
    def shaping(self) -> Shaping:
        """What is done to gradients."""
        return Shaping.of(self.clip_value, self.gradient_noise, self.seed)

    @property
    def num_workers(self) -> int:
        return len(self.shares)

    def num_replicas(self, worker: int) -> int:
        """Return how many processes are this worker."""
        return self.replicas[worker] if self.replicas else 1

    def places(self) -> list[tuple[int, int]]:
        """Return worker and replica of each process, by rank."""
        return [(worker, each) for worker in range(self.num_workers) for each in range(self.num_replicas(worker))]

    def owned(self, worker: int) -> range:
        """Return the numbers of the modules of a worker."""
        start = sum(self.shares[:worker])
        return range(start, start + self.shares[worker])

    def end_of_quota(self, step: int) -> int:
        """Return the first step from `step` on after which there is an evaluation."""
        return min(-(-step // self.quota) * self.quota, self.steps)

    def order(self, num_examples: int) -> Order:
        """Return which examples each batch has; a pipeline with this seed and batch size sees the same."""
        return Order(self.seed, self.batch_size, num_examples)

    def batch_seed(self, step: int) -> int:
        """Return what the modules' seeds for step `step`, from 1, come from."""
        return integer(self.seed, "local batch", step)

    def evaluation_seed(self, index: int) -> int:
        """Return the seed of a batch of test examples: the same at every evaluation."""
        return integer(self.seed, "local evaluation", index)


class Built(NamedTuple):
    """A model and the modules that a rule makes of it; what of the model the modules have is shared with it."""

    model: nn.Module
    rule: LocalRule
    modules: list[LocalModule]

    def saver(self, memory: Mapping[str, Any] | None, owned: Sequence[int]) -> Saver | None:
        """Return what keeps the activations of some modules; None where they are kept as they are."""
        named = {index: (f"modules.{index}", self.modules[index]) for index in owned}
        return None if memory is None else Saver(memory, named)

    def names(self) -> list[dict[str, str]]:
        """Return for each module its tensors' own names -> their names in checkpoints.

        Those are the model's, and `auxiliary.K.NAME` for what module K has beside the model.

        Raises:
            ValueError: when the model has such a name itself.
        """
        known = {id(tensor): name for name, tensor in _tensors(self.model)}
        taken, found = set(known.values()), []
        for index, module in enumerate(self.modules):
            names = {}
            for name, tensor in _tensors(module):
                names[name] = known.get(id(tensor)) or f"auxiliary.{index}.{name.removeprefix('auxiliary.')}"
                if names[name] in taken and id(tensor) not in known:
                    raise ValueError(f"two tensors would be called {names[name]}; call the model's own something else")
                taken.add(names[name])
            found.append(names)
        return found


def build(settings: Settings, dataset: Dataset) -> Built:
    """Return the model, drawn from its seed, and the rule's modules, drawn from the run's.

    Raises:
        ValueError: when the rule's arguments, or the model, do not suit the rule.
    """
    model = models.build_for(settings, dataset)
    rule = local.rule(**settings.rule)
    modules = rule.modules(
        local.units(model),
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
        seed=integer(settings.seed, "local modules"),
    )
    return Built(model, rule, modules)


def _tensors(module: nn.Module) -> Sequence[tuple[str, Any]]:
    return [*module.named_parameters(), *module.named_buffers()]
