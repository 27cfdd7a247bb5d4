"""One rank's DeepSpeed engine: the model, built in parts at stage 3, and what moves it.

DeepSpeed is imported here, and only when an engine is made: it takes seconds, prints, and reads `DS_ACCELERATOR` once.
The process group is the gang's. The operator that DeepSpeed compiles for reductions at inference on a CPU is left out:
nothing here calls it, it needs a compiler, and a build that died leaves a lock that later ones wait for without end.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from strategies.optimizers import Piece
from strategies.optimizers.layerwise import Layerwise
from trainers import models, optimizers
from trainers.data.base import Dataset
from trainers.pipeline import batchnorm
from trainers.pipeline.batchnorm import Deferred
from trainers.zero import native
from trainers.zero.building import build_in_parts
from trainers.zero.fragments import basic, fragments, is_shared
from trainers.zero.outputs import opened
from trainers.zero.settings import Settings
from trainers.zero.traffic import Traffic


class Made(NamedTuple):
    """An engine and what belongs to it.

    Args:
        engine: DeepSpeed's. model: the module in it. norms: its BatchNorm layers, see `trainers.pipeline.batchnorm`.
        pieces: of named parameters, in each tensor that the optimizer moves on this rank.
        traffic: counts what collectives move.
        building_bytes: of parameters that this rank held at once, at most, while the model was built.
    """

    engine: Any
    model: nn.Module
    norms: list[Deferred]
    pieces: Mapping[Tensor, Sequence[Piece]]
    traffic: Traffic
    building_bytes: int


def prepare(device: torch.device) -> None:
    """Import DeepSpeed for a kind of device, and let it work on the process group that is there.

    Raises:
        Unsuitable: when this process has used it for another kind of device.
    """
    kind = "cpu" if device.type == "cpu" else "cuda"
    asked = os.environ.setdefault("DS_ACCELERATOR", kind)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*torch.distributed.*deprecated", category=FutureWarning)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if get_accelerator().device_name() != kind:
        raise native.Unsuitable(f"DeepSpeed works on {asked} in this process, but the rank is on {kind}")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist.get_backend())


def make(settings: Settings, dataset: Dataset, device: torch.device) -> Made:
    """Return this rank's engine, with the model that its seed stands for.

    Raises:
        Unsuitable: when DeepSpeed cannot do it here.
    """
    native.insist_possible(settings)
    prepare(device)
    import deepspeed

    def build() -> nn.Module:
        return models.build_for(settings, dataset, whole_outputs=True)

    if settings.stage == 3:
        dtype = torch.bfloat16 if settings.precision == "bf16" else None
        model, held = build_in_parts(build, lambda sizes: native.configuration(settings, sizes), device, dtype)
        sizes = [parameter.ds_numel for parameter in model.parameters()]
    else:
        model = build().to(device)
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
        sizes = [parameter.numel() for parameter in model.parameters()]
        held = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    norms = batchnorm.install(model)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    given = optimizers.build(settings.optimizer, trained)
    with _built_everywhere(), _unmoved(given), opened(model) if settings.stage == 3 else nullcontext():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=given,
            config=native.configuration(settings, sizes),
            dist_init_required=False,
        )
    optimizer, names = basic(engine.optimizer), [name for name, _ in trained]
    pieces: dict[Tensor, list[Piece]] = {}
    for found in fragments(engine):
        piece = Piece(found.name, found.shape, found.start, found.offset, found.length)
        pieces.setdefault(found.moved, []).append(piece)
        if is_shared(engine) and found.moved is not found.parameter and found.parameter in optimizer.state:
            optimizer.state[found.moved] = optimizer.state.pop(found.parameter)  # Adagrad begins with a state
    if isinstance(optimizer, Layerwise) and not is_shared(engine):
        optimizer.shard(pieces, names, partial(_total, device=device))
    return Made(engine, model, norms, pieces, Traffic(), held)


def _total(squares: Tensor, device: torch.device) -> Tensor:
    summed = squares.to(device)
    dist.all_reduce(summed)
    return summed.to(squares.device)


@contextmanager
def _built_everywhere() -> Iterator[None]:
    """Leave out that the first rank sends its model to all others: they have the same, built from the same seed.

    DeepSpeed sends bytes, and fails at parameters without dimensions.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine

    sends = DeepSpeedEngine._broadcast_model
    DeepSpeedEngine._broadcast_model = lambda engine: None
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = sends


@contextmanager
def _unmoved(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let steps of an optimizer do nothing in this block.

    In bf16 at stage 0 DeepSpeed makes a step with gradients of zeros as it is built: weights would decay, and Adam
    would count a step more than there were.
    """
    vars(optimizer)["step"] = lambda: None
    try:
        yield
    finally:
        del vars(optimizer)["step"]
