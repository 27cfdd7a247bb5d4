"""How large a model is that nobody may be able to hold, and which stage of ZeRO its training fits at.

The model is built on torch's meta device, which has shapes and no memory. What autograd keeps of a rank's part of a
batch is counted the same way, with tensors that claim to be on the CPU (`FakeTensorMode`), so that the operations are
those that ranks do. A user's own model that cannot be built like that is built for real, once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from orchestrator.config import Origins
from orchestrator.config.memory import plain
from orchestrator.config.schema import Experiment, Zero
from orchestrator.config.zero_checks import native_of
from orchestrator.errors import ConfigError, Problem
from orchestrator.gang_settings import shared_by_batches
from orchestrator.memory_checks import insist_parts
from orchestrator.planning import PROCESS_BYTES, placement_of
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from strategies.zero.memory import Held, Model, Numbers, held, smallest
from trainers import optimizers
from trainers.activations.counting import Counting
from trainers.data.base import Dataset, to_labels, to_tensor
from trainers.local import loss_of
from trainers.zero.native import Unsuitable, configuration, insist_possible
from trainers.zero.settings import Settings


class Limit(NamedTuple):
    """What a rank may hold, and where that is said; `bytes` is None where nobody knows."""

    bytes: int | None
    said: str


class Sizes(NamedTuple):
    """A model's sizes and what they come to.

    Args:
        counted: whether activations could be counted.
        plain_activation_bytes: of what autograd would keep without a `memory` section.
    """

    model: Model
    numbers: Numbers
    counted: bool
    plain_activation_bytes: int

    def held(self, strategy: Zero, stage: int) -> Held:
        """Return what each rank holds at a stage; stage 0 offloads nothing."""
        offload = strategy.offload if stage else "none"
        return held(self.model, self.numbers, ranks=strategy.ranks, stage=stage, offload=offload)


def sizes(prepared: Prepared) -> Sizes:
    """Count."""
    experiment, model = prepared.experiment, prepared.model
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    parameters = list(model.parameters())
    numbers, keeps_whole = _numbers(experiment, parameters)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    small = [parameter for parameter in parameters if parameter.numel() <= keeps_whole]
    activations = _activations(prepared, strategy)
    counts = Model(
        total=_count(parameters),
        trained=_count(trained),
        largest=max(_count(list(module.parameters(recurse=False))) for module in model.modules()),
        small=_count(small),
        activation_bytes=0 if activations is None else activations[0],
    )
    return Sizes(counts, numbers, activations is not None, 0 if activations is None else activations[1])


def limit(experiment: Experiment, dataset: Dataset) -> Limit:
    """Return what a rank may hold besides its process: as the experiment says, or its share of its node's memory."""
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    if strategy.rank_memory is not None:
        return Limit(strategy.rank_memory, "strategy.rank_memory")
    if experiment.cluster.device == "cuda":
        return Limit(None, "")
    nodes, placed = placement_of(experiment)
    shares = {}
    for index, node in enumerate(nodes):
        here = strategy.ranks if placed is None or not placed.fits else placed.assignment.count(index)
        have = node.total.get("memory", 0.0)
        if here and have > 0:
            shares[node.address] = int((have - dataset.num_bytes) / here) - PROCESS_BYTES
    if not shares:
        return Limit(None, "")
    address = min(shares, key=lambda name: shares[name])
    return Limit(max(shares[address], 0), f"a rank's share of {address}")


def settle_zero(prepared: Prepared, where: Origins | None = None) -> tuple[Prepared, str]:
    """Return the experiment with its stage as a number and its DeepSpeed configuration read, and a line about it.

    Raises:
        ConfigError: when no stage fits, saying what the last one needs; when a pattern of `memory` finds nothing.
    """
    experiment, origins = prepared.experiment, where or Origins()
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    insist_parts(strategy.memory, {0: ("", prepared.model)}, origins)
    changes: dict[str, Any] = {"deepspeed": native_of(strategy)}
    line = ""
    if strategy.stage == "auto":
        found, allowed = sizes(prepared), limit(experiment, prepared.dataset)
        stage = fitting(strategy, found, allowed, on_cpu=experiment.cluster.device == "cpu")
        if stage is None:
            need = size(found.held(strategy, 3).total)
            path = "strategy.rank_memory" if strategy.rank_memory is not None else "strategy.stage"
            message = f"a rank would hold {need} at stage 3, and may hold {size(allowed.bytes or 0)}, {allowed.said}"
            hint = "more ranks, a smaller batch or model, or memory: see the table of orchestrator plan"
            raise ConfigError([Problem(origins(path), path, message, hint)])
        changes["stage"] = stage
        need = size(found.held(strategy, stage).total)
        fits = f"fits {size(allowed.bytes)}, {allowed.said}" if allowed.bytes is not None else "is the largest there is"
        line = f"stage          {stage}: with {need} a rank it {fits}"
    settled = experiment.model_copy(update={"strategy": strategy.model_copy(update=changes)})
    if experiment.num_workers and (strategy.offload != "nvme" or experiment.cluster.address == "local"):
        try:
            insist_possible(settings_of(settled))
        except Unsuitable as error:
            path = "strategy.offload" if strategy.offload != "none" else "strategy.stage"
            raise ConfigError([Problem(origins(path), path, str(error))]) from error
    return prepared._replace(experiment=settled), line


def fitting(strategy: Zero, found: Sizes, allowed: Limit, *, on_cpu: bool) -> int | None:
    """Return the smallest stage that fits; 3 where nobody knows what a rank may hold."""
    if allowed.bytes is None or strategy.offload == "nvme":
        return 3
    return smallest(
        found.model,
        found.numbers,
        ranks=strategy.ranks,
        limit=allowed.bytes,
        offload=strategy.offload,
        host_counts=on_cpu,
    )


def settings_of(experiment: Experiment) -> Settings:
    """Return what every rank is told; a stage that is not settled counts as 3."""
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    return Settings(
        **shared_by_batches(experiment),
        ranks=strategy.ranks,
        stage=3 if strategy.stage == "auto" else strategy.stage,
        offload=strategy.offload,
        nvme_folder=strategy.nvme_folder,
        deepspeed=native_of(strategy),
        memory=plain(strategy.memory),
    )


# ---------------------------------------------------------------------------------------------------- counting


def _numbers(experiment: Experiment, parameters: list[nn.Parameter]) -> tuple[Numbers, int]:
    """Return how numbers are kept, and up to how many elements stage 3 keeps a parameter whole."""
    strategy = experiment.strategy
    assert isinstance(strategy, Zero)
    dtype = getattr(torch, experiment.model.dtype)
    width = 2 if strategy.precision == "bf16" else dtype.itemsize
    asked = configuration(settings_of(experiment), [parameter.numel() for parameter in parameters])["zero_optimization"]
    numbers = Numbers(
        weight=width,
        gradient=width,
        slots=optimizers.copies(strategy.optimizer.model_dump(), dtype),
        bucket=int(asked["reduce_bucket_size"]),
        live=int(asked["stage3_max_live_parameters"]),
    )
    return numbers, int(asked["stage3_param_persistence_threshold"])


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _activations(prepared: Prepared, strategy: Zero) -> tuple[int, int] | None:
    """Return the bytes that autograd keeps of a rank's part of a batch, and those it would keep without `memory`.

    None when that cannot be counted.
    """
    from torch._subclasses import FakeTensorMode

    dataset, model = prepared.dataset, prepared.model
    dtype = torch.bfloat16 if strategy.precision == "bf16" else getattr(torch, prepared.experiment.model.dtype)
    rows = -(-strategy.batch_size // strategy.ranks)
    x, y = to_tensor(dataset.train_x[:1], dataset, dtype), to_labels(dataset.train_y[:1])
    training = model.training
    try:
        with FakeTensorMode():
            tensors = {
                name: torch.empty(each.shape, dtype=dtype if each.is_floating_point() else each.dtype).requires_grad_(
                    each.requires_grad
                )
                for name, each in (*model.named_parameters(), *model.named_buffers())
            }
            batch = torch.empty((rows, *x.shape[1:]), dtype=x.dtype)
            labels = torch.empty((rows, *y.shape[1:]), dtype=y.dtype)
            model.train()
            counting = Counting(plain(strategy.memory), model, tensors.values())
            with counting.count(batch):
                output = torch.func.functional_call(model, tensors, (batch,))
            with counting.count():
                loss = loss_of(output, labels)  # held, so that what it keeps is
            del loss
            return counting.kept_bytes, counting.plain_bytes
    except Exception:  # a user's model may do what only real tensors can: then they are left out, and the plan says so
        return None
    finally:
        model.train(training)
