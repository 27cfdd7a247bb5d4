"""One rank of a ZeRO gang: its share of each batch through DeepSpeed's engine, an update, and evaluation.

DeepSpeed averages gradients over ranks and, unless told otherwise, over batches. A share's loss is therefore multiplied
by its weight in the step's loss and by the number of ranks: uneven shares give the gradient of the whole batch. After
the last backward, one vector is summed over all ranks: the loss, the wish to stop, what BatchNorm layers saw, and the
ranges of activations that are kept in 8 bits (`keeping`). Each
rank normalises its share by the share's own statistics, and the running ones move by those of the whole batch, as in a
pipeline (`trainers.pipeline.batchnorm`); so all ranks have the same, and one process would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainers.data.base import Dataset
from trainers.learning_rate import Rates
from trainers.local import NotFinite
from trainers.loop import Outcome, Spans, since
from trainers.pipeline.batchnorm import combine
from trainers.zero.engine import Made
from trainers.zero.forward import Scoring, drawing, evaluating, figures
from trainers.zero.fragments import basic, is_shared
from trainers.zero.held import measured
from trainers.zero.keeping import Keeping
from trainers.zero.settings import Settings, Shares, parts_of_tests

_HEAD = 2
"""Numbers at the head of a step's vector: the loss, the wish to stop."""


class Rank:
    """What `trainers.loop` runs on each rank.

    Args:
        made: the engine. number: of the rank. evaluate_batch: test examples of one forward pass.
    """

    ends = False

    def __init__(
        self, settings: Settings, dataset: Dataset, made: Made, number: int, device: torch.device, evaluate_batch: int
    ) -> None:
        self.settings, self.number, self.made = settings, number, made
        self._engine, self._device, self._evaluate_batch = made.engine, device, evaluate_batch
        self._num_tests = len(dataset.test_y)
        self._shares = Shares(settings, len(dataset.train_y))
        self._scoring = Scoring(settings, dataset, device)
        self.kept = Keeping(settings, made.model)
        self._optimizer = basic(made.engine.optimizer)
        self._rates = Rates(self._optimizer, settings.learning_rate, settings.steps)
        self._spans: list[tuple[str, int, int, float, float, float]] = []
        self._held: dict[str, int] | None = None
        self._step, self._norm = 0, 0.0
        self._clips = settings.clip_norm is not None and is_shared(made.engine)
        if self._clips or not settings.shaping.idle:
            self._optimizer.register_step_pre_hook(self._before)
        made.engine.train()

    def step(self, number: int, stop: bool = False) -> Outcome:
        """Train on the batches of step `number`, from 1.

        Raises:
            NotFinite: when the loss or the norm of the gradient is not.
        """
        self._rates.set(number)
        self._step = number
        self._spans = []
        loss, gradients = 0.0, 0
        shares = self._shares.of_step(number, self.number)
        for index, share in enumerate(shares):
            if index:
                self._engine.step()  # counts the batch; it moves nothing before the last
            for norm in self.made.norms:
                norm.microbatch = index if share.weight else None
            began = time.perf_counter()
            with drawing(share.seed, self._device):
                inputs = self._scoring.inputs(share.rows)
                with self.kept.share(number, index, self.number, share, inputs):
                    returned = self._engine(inputs)
                value = self._scoring.loss(returned, share.rows)
                between = time.perf_counter()
                loss += float(value.detach()) * share.weight
                self._engine.backward(value * (share.weight * self.settings.ranks), scale_wrt_gas=False)
            if self._held is None:
                gradients = max(gradients, measured(self._engine)["gradients"])
            self._note("F", index, began, between)
            self._note("B", index, between, time.perf_counter())
        loss, stop = self._agree(loss, stop)
        if not math.isfinite(loss):
            raise NotFinite(f"training diverged at step {number}: loss {loss}")
        began = time.perf_counter()
        norm = self._update(number)
        self._note("U", 0, began, time.perf_counter())
        values = {"train/loss": loss, "comm/collective_bytes": self.made.traffic.take()}
        if self.settings.clip_norm is not None:
            values["train/gradient_norm"] = norm
        if self._held is None:
            values |= self._tell_memory(gradients)
        return Outcome(values, stop)

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Change gradients before the optimizer sees them; DeepSpeed may hand it some of its tensors at a time.

        At stage 0 that includes clipping: DeepSpeed's own fails there at parameters without dimensions.
        """
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._clips:
            assert self.settings.clip_norm is not None
            self._norm = float(nn.utils.clip_grad_norm_(moved, self.settings.clip_norm))
        if not self.settings.shaping.idle:
            for tensor in moved:
                self.settings.shaping.apply_to_pieces(tensor.grad, self.made.pieces[tensor], self._step)

    def _update(self, number: int) -> float:
        """Move the parameters; return the norm of the whole gradient where it is clipped."""
        self._engine.step()
        if self.settings.clip_norm is None:
            return 0.0
        norm = self._norm if self._clips else float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm) or norm < 0:  # DeepSpeed writes -1 for what is not finite
            raise NotFinite(f"training diverged at step {number}: gradient norm {norm}")
        return norm

    def _agree(self, loss: float, stop: bool) -> tuple[float, bool]:
        """Sum over ranks; return the step's loss and whether some rank wants to stop."""
        seen = [norm.statistics().cpu() for norm in self.made.norms]
        width = sum(map(len, seen))
        end = _HEAD + self.settings.ranks * width
        kept = self.kept.sums()
        vector = torch.zeros(end + len(kept), dtype=torch.float64)
        vector[0], vector[1] = loss, float(stop)
        if seen:
            vector[_HEAD + self.number * width :][:width] = torch.cat(seen)
        vector[end:] = kept
        vector = self._sum(vector)
        self.kept.commit(vector[end:], self._device)
        if seen:
            columns = vector[_HEAD:end].view(self.settings.ranks, width).split([len(one) for one in seen], dim=1)
            for norm, rows in zip(self.made.norms, columns, strict=True):
                norm.commit(combine(list(rows)).to(norm.layer.running_mean.device))
        return float(vector[0]), bool(vector[1])

    def _sum(self, vector: Tensor) -> Tensor:
        summed = vector.to(self._device)
        dist.all_reduce(summed)
        return summed.cpu()

    def _tell_memory(self, gradients: int) -> dict[str, float]:
        """Return the most bytes that a rank holds: of gradients after a backward, of all else after the update."""
        self._held = {**measured(self._engine), "gradients": gradients}
        optimizer = self._held["master"] + self._held["optimizer"]
        own = [self._held["parameters"], self._held["gradients"], optimizer, self.made.building_bytes]
        most = torch.tensor(own, dtype=torch.float64, device=self._device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        names = ("parameters", "gradients", "optimizer", "building")
        return {f"memory/{name}_bytes": value for name, value in zip(names, most.tolist(), strict=True)}

    def evaluate(self, number: int) -> dict[str, float]:
        """Measure the model on the test examples; every rank goes through its part of them."""
        del number
        total = torch.zeros(3, dtype=torch.float64)
        parts = parts_of_tests(self._num_tests, self._evaluate_batch, self.settings.ranks, self.number)
        with evaluating(self._engine):
            for rows in parts:
                some = rows if len(rows) else [0]
                returned = self._engine(self._scoring.inputs(some, test=True))
                if len(rows):
                    total += self._scoring.tested(returned, rows)
        self.made.traffic.take()  # what stage 3 gathered for this is no step's
        return figures(self._sum(total))

    def export(self) -> Mapping[str, Mapping[str, Tensor]]:
        """As `loop.Work.export`; ranks write files instead, see `saving`."""
        return {}

    def spans_since(self, began_s: float) -> Spans:
        """Return the spans of the last step, in seconds since `began_s` on this process's clock."""
        return since(began_s, self._spans)

    def _note(self, kind: str, index: int, began_s: float, end_s: float) -> None:
        self._spans.append((kind, 0, index, began_s, began_s, end_s))


def torch_dtype(settings: Settings) -> Any:
    """Return the dtype of the model in checkpoints."""
    return getattr(torch, settings.model["dtype"])
