"""What a ZeRO gang computes, in one process and without DeepSpeed: for debuggers, for tests, and for one device.

The shares of a batch go through the model one after another and add up their gradients; then an optimizer of torch
moves the parameters. Layers draw for each share what they draw on its rank, so losses are the gang's, up to the order
of sums. In bf16 the model computes in bfloat16 and float32 copies are moved, as on ranks; there gradients are added in
another order and precision, and losses agree to three decimals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainers import models, modules, optimizers
from trainers.data.base import Dataset
from trainers.learning_rate import Rates
from trainers.local import NotFinite
from trainers.loop import Spans, since
from trainers.pipeline import batchnorm
from trainers.pipeline.state import Trees, copied, remember, remind
from trainers.zero.forward import Scoring, drawing, evaluating, figures
from trainers.zero.keeping import Keeping
from trainers.zero.settings import Settings, Shares


class InlineZero:
    """All ranks' shares, on one device.

    Args:
        evaluate_batch: test examples of one forward pass.
    """

    ends = False

    def __init__(
        self, settings: Settings, dataset: Dataset, device: torch.device | None = None, evaluate_batch: int = 256
    ) -> None:
        self.settings, self._dataset, self._device = settings, dataset, device or torch.device("cpu")
        self._evaluate_batch = evaluate_batch
        self.model = models.build_for(settings, dataset, whole_outputs=True).to(self._device)
        low = settings.precision == "bf16"
        self._moved: dict[str, nn.Parameter] = {}
        for name, parameter in self.model.named_parameters():
            if low:
                parameter.data = parameter.data.to(torch.bfloat16)
            if parameter.requires_grad:
                self._moved[name] = nn.Parameter(parameter.detach().float()) if low else parameter
        self._norms = batchnorm.install(self.model)
        self._optimizer = optimizers.build(settings.optimizer, self._moved.items())
        self._rates = Rates(self._optimizer, settings.learning_rate, settings.steps)
        self._shares = Shares(settings, len(dataset.train_y))
        self._scoring = Scoring(settings, dataset, self._device)
        self._kept = Keeping(settings, self.model)
        self._spans: list[list[tuple[str, int, int, float, float, float]]] = []
        self.model.train()

    def step(self, number: int) -> Mapping[str, float]:
        """Train on the batches of step `number`, from 1; figures by metric name.

        Raises:
            NotFinite: when the loss or the norm of the gradient is not.
        """
        settings = self.settings
        self._rates.set(number)
        self.model.zero_grad(set_to_none=True)
        loss, self._spans = 0.0, [[] for _ in range(settings.ranks)]
        for rank in range(settings.ranks):
            for index, share in enumerate(self._shares.of_step(number, rank)):
                if not share.weight:
                    continue
                for norm in self._norms:
                    norm.microbatch = rank * settings.accumulate + index
                began = time.perf_counter()
                with drawing(share.seed, self._device):
                    inputs = self._scoring.inputs(share.rows)
                    with self._kept.share(number, index, rank, share, inputs):
                        returned = self.model(inputs)
                    value = self._scoring.loss(returned, share.rows)
                    between = time.perf_counter()
                    loss += float(value.detach()) * share.weight
                    (value * share.weight).backward()
                self._spans[rank].append(("F", 0, index, began, began, between))
                self._spans[rank].append(("B", 0, index, between, between, time.perf_counter()))
        for norm in self._norms:
            norm.commit(norm.statistics())
        self._kept.commit_alone()
        if not math.isfinite(loss):
            raise NotFinite(f"training diverged at step {number}: loss {loss}")
        return {"train/loss": loss, **self._update(number)}

    @torch.no_grad()
    def _update(self, number: int) -> dict[str, float]:
        computing = dict(self.model.named_parameters())
        for name, moved in self._moved.items():
            gradient = computing[name].grad
            moved.grad = torch.zeros_like(moved) if gradient is None else gradient.to(moved.dtype)
        told = {}
        if self.settings.clip_norm is not None:
            norm = float(nn.utils.clip_grad_norm_(self._moved.values(), self.settings.clip_norm))
            if not math.isfinite(norm):
                raise NotFinite(f"training diverged at step {number}: gradient norm {norm}")
            told["train/gradient_norm"] = norm
        self.settings.shaping.apply(((name, moved.grad) for name, moved in self._moved.items()), number)
        self._optimizer.step()
        self._refresh()
        return told

    @torch.no_grad()
    def _refresh(self) -> None:
        """Let the model compute with what was moved."""
        for name, parameter in self.model.named_parameters():
            if name in self._moved and self._moved[name] is not parameter:
                parameter.copy_(self._moved[name])

    def evaluate(self, number: int) -> dict[str, float]:
        """Measure the model on the test examples; figures by metric name."""
        del number
        total = torch.zeros(3, dtype=torch.float64)
        with evaluating(self.model):
            for rows in torch.arange(len(self._dataset.test_y)).split(self._evaluate_batch):
                total += self._scoring.tested(self.model(self._scoring.inputs(rows.numpy(), test=True)), rows.numpy())
        return figures(total)

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return a copy of the whole state."""
        dtype = getattr(torch, self.settings.model["dtype"])
        trees: dict[str, dict[str, Tensor]] = {"model": {}, "counters": {}}
        for name, tensor in modules.everything(self.model):
            held = self._moved.get(name, tensor).detach()
            if held.is_floating_point():
                trees["model"][name] = held.to(dtype)
            else:
                trees["counters"][name] = held
        for name, moved in self._moved.items():
            remember(self._optimizer, name, moved, trees)
        return copied({**trees, **self._kept.trees()})

    @torch.no_grad()
    def restore(self, trees: Trees) -> None:
        """Take a whole state."""
        for name, tensor in modules.everything(self.model):
            held = self._moved.get(name, tensor)
            tree = "model" if held.is_floating_point() else "counters"
            if tree == "model" or name in trees.get(tree, {}):
                held.copy_(trees[tree][name])
        for name, moved in self._moved.items():
            remind(self._optimizer, name, moved, trees)
        self._kept.restore(trees)
        self._refresh()

    def spans_since(self, began_s: float) -> list[Spans]:
        """Return each share's spans in the last step, in seconds since `began_s`."""
        return [since(began_s, spans) for spans in self._spans]
