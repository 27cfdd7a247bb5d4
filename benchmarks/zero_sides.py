"""The sides of `zero_memory`: each makes the same AdamW steps of the same language model on two ranks.

    ours                  a rank of strategy zero, at a stage
    deepspeed             DeepSpeed's engine driven by a plain loop, with the configuration that we give it
    deepspeed-defaults    the same with DeepSpeed's own bucket sizes and limits
    ddp, fsdp2            torch's DistributedDataParallel, and fully_shard on every block and on the whole

All read the same examples in the same shares, and none waits for more than its own collectives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.workloads import Deep
from trainers import models
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.local import loss_of
from trainers.zero import engine, native
from trainers.zero.held import measured
from trainers.zero.rank import Rank
from trainers.zero.settings import Settings, Shares

RANKS = 2
SIDES = ("ours", "deepspeed", "deepspeed-defaults", "ddp", "fsdp2")
ADAMW = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}

Sizes = dict[str, int]
"""Bytes by what they are: `parameters`, `gradients`, `optimizer`."""


def settings(deep: Deep, stage: int, accumulate: int) -> Settings:
    """Return how a side trains."""
    model = {"name": "transformer", "layers": deep.layers, "width": deep.width, "heads": 8, "dtype": "float32"}
    return Settings(
        model=model, seed=1, model_seed=1, ranks=RANKS, stage=stage, offload="none", nvme_folder=None,
        batch_size=deep.batch, accumulate=accumulate, optimizer=ADAMW,
        learning_rate={"name": "constant", "warmup_steps": 0, "final": 0.0}, clip_norm=None,
        loss={"reduction": "mean", "target": None}, precision=None, steps=1_000_000,
    )  # fmt: skip


class Side(ABC):
    """One way to make steps; `held` is what it was seen to hold, gradients as of after a backward."""

    def __init__(self) -> None:
        self.held: Sizes = {}
        self.loss = float("nan")

    @abstractmethod
    def step(self, number: int) -> None:
        """Make step `number`, from 1."""


class Ours(Side):
    def __init__(self, given: Settings, data: Dataset, rank: int) -> None:
        super().__init__()
        self._rank = Rank(given, data, engine.make(given, data, torch.device("cpu")), rank, torch.device("cpu"), 1)

    def step(self, number: int) -> None:
        values = self._rank.step(number).values
        self.loss = values["train/loss"]
        for name in ("parameters", "gradients", "optimizer"):
            if f"memory/{name}_bytes" in values:
                self.held[name] = int(values[f"memory/{name}_bytes"])


class Plain(Side):
    """What the other sides share: a model of their own, the examples, and sums of losses."""

    def __init__(self, given: Settings, data: Dataset, rank: int) -> None:
        super().__init__()
        self.given, self._data, self._rank = given, data, rank
        self._shares = Shares(given, len(data.train_y))
        self.model = models.build(
            given.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=given.model_seed
        )

    def losses(self, number: int, model: Any) -> Iterable[tuple[Tensor, bool]]:
        """Yield the loss of each batch of a step, and whether it is the last."""
        shares = self._shares.of_step(number, self._rank)
        total = torch.zeros(1)
        for index, share in enumerate(shares):
            x = to_tensor(self._data.train_x[share.rows], self._data, torch.float32)
            loss = loss_of(model(x), to_labels(self._data.train_y[share.rows]))
            total += loss.detach() / len(shares)
            yield loss, index == len(shares) - 1
        dist.all_reduce(total)
        self.loss = float(total) / RANKS


class Direct(Plain):
    def __init__(self, given: Settings, data: Dataset, rank: int, defaults: bool) -> None:
        super().__init__(given, data, rank)
        engine.prepare(torch.device("cpu"))
        import deepspeed

        config = native.configuration(given, [p.numel() for p in self.model.parameters()])
        if defaults:
            config["zero_optimization"] = {"stage": given.stage}
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        self._engine, *_ = deepspeed.initialize(model=self.model, optimizer=optimizer, config=config)

    def step(self, number: int) -> None:
        first = not self.held
        gradients = 0
        for loss, last in self.losses(number, self._engine):
            self._engine.backward(loss)
            if first:
                gradients = max(gradients, measured(self._engine)["gradients"])
            if not last:
                self._engine.step()
        self._engine.step()
        if first:
            found = measured(self._engine)
            optimizer = found["master"] + found["optimizer"]
            self.held = {"parameters": found["parameters"], "gradients": gradients, "optimizer": optimizer}


class Torch(Plain):
    def __init__(self, given: Settings, data: Dataset, rank: int, name: str) -> None:
        super().__init__(given, data, rank)
        self._sharded = name == "fsdp2"
        if self._sharded:
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (RANKS,))
            blocks: Any = self.model.blocks
            for block in blocks:
                fully_shard(block, mesh=mesh)
            self._wrapped: Any = fully_shard(self.model, mesh=mesh)
        else:
            self._wrapped = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    def step(self, number: int) -> None:
        gradients = 0
        for loss, last in self.losses(number, self._wrapped):
            self._sync(last)
            (loss / self.given.accumulate).backward()
            if not self.held:
                gradients = max(gradients, _bytes(p.grad for p in self.model.parameters()))
        self._optimizer.step()
        if not self.held:
            states = (value for state in self._optimizer.state.values() for value in state.values())
            parameters = _bytes(self.model.parameters())
            self.held = {"parameters": parameters, "gradients": gradients, "optimizer": _bytes(states)}
        self._optimizer.zero_grad(set_to_none=True)

    def _sync(self, last: bool) -> None:
        if not self._sharded:
            self._wrapped.require_backward_grad_sync = last


def _bytes(tensors: Iterable[Any]) -> int:
    """Return the bytes of the memory below some tensors, each block once; of a DTensor, of this rank's part."""
    blocks = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            storage = own.untyped_storage()
            blocks[storage.data_ptr()] = storage.nbytes()
    return sum(blocks.values())


def make(name: str, given: Settings, data: Dataset, rank: int) -> Side:
    """Return a side by its name."""
    if name == "ours":
        return Ours(given, data, rank)
    if name.startswith("deepspeed"):
        return Direct(given, data, rank, defaults=name != "deepspeed")
    return Torch(given, data, rank, name)
