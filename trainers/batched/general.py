"""Any module that torch can batch: `torch.func` over stacked parameters, one program for a group of clients.

Source: torch.func.functional_call, vmap and grad, as in torch's tutorial on ensembling. What this cannot do is found
out by trying, see `choosing.refusal`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainers.batched.block import Block
from trainers.batched.orders import Schedule, firsts
from trainers.batched.stacked import Group, Product
from trainers.batched.starts import Starts
from trainers.batched.stepper import Corrections, Stepper, clip_factors, squared_norms
from trainers.local import LocalSettings, Task


class General:
    """A module ready to train groups of clients.

    Args:
        model: stays as it is. names: the tensors that travel, in the model's order.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], settings: LocalSettings) -> None:
        self._model, self._names, self._settings = model, list(names), settings
        self._trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._counters = {name: buffer for name, buffer in model.named_buffers() if name not in self._names}

    def train(self, tasks: Sequence[Task], block: Block, plan: Schedule) -> Group:
        """Train one group; `tasks` and `block` in the group's order, the result likewise."""
        tasks = [tasks[place] for place in plan.order]
        device = block.x.device
        self._model.train()
        starts = Starts([task.start for task in tasks], self._names, device)
        corrections = Corrections(
            [task.correction for task in tasks], {name: starts.trees[name] for name in self._trained}
        )
        weights = {name: starts.stacked(name) for name in self._trained}
        others = {name: starts.trees[name] for name in self._names if name not in weights}
        spread = {name: 0 if starts.differs(name) else None for name in others}
        stepper = Stepper(self._settings.optimizer, list(weights.values()))
        places = torch.from_numpy(plan.chosen + firsts(block.sizes)[plan.order][:, None, None]).to(device)
        losses = torch.zeros(len(tasks), dtype=torch.float64, device=device)
        gradient = vmap(grad(self._loss, has_aux=True), in_dims=(0, spread, 0, 0, 0, 0), randomness="error")
        for step in range(plan.chosen.shape[1]):
            active = int((plan.num_steps > step).sum())
            counts = plan.counts[:active, step]
            width = int(counts.max())
            chosen = places[:active, step, :width]
            numbers = torch.from_numpy(counts).to(device)
            mask = torch.arange(width, device=device) < numbers[:, None]
            now = {name: weight[:active] for name, weight in weights.items()}
            rest = {name: value[:active] if spread[name] == 0 else value for name, value in others.items()}
            with sdpa_kernel(SDPBackend.MATH):  # torch 2.13's fused attention has no batching rule, and goes wrong
                gradients, sums = gradient(now, rest, block.x[chosen], block.y[chosen], mask, numbers)
            losses[:active] += sums
            stepper.step(self._finished(gradients, now, corrections))
        means = (losses.cpu().numpy() / plan.counts.sum(axis=1)).tolist()
        return self._result(weights, starts, plan, means)

    def _loss(
        self,
        weights: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        mask: Tensor,
        count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return one client's mean loss of a batch, and the sum over its examples; masked examples add nothing."""
        logits = functional_call(self._model, ({**weights, **others}, self._counters), (x,))
        each = functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
        each = each.view(len(x), -1).mean(dim=1)
        total = torch.where(mask, each, 0.0).sum()
        return total / count, total.detach()

    def _finished(
        self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], corrections: Corrections
    ) -> list[Tensor]:
        kept = [gradients[name] for name in weights]
        if corrections:
            kept = [corrections.correct(name, gradients[name], weight) for name, weight in weights.items()]
        if self._settings.clip_norm is not None:
            factors = clip_factors([squared_norms(gradient) for gradient in kept], self._settings.clip_norm)
            kept = [gradient * factors.view(-1, *[1] * (gradient.dim() - 1)) for gradient in kept]
        return kept

    def _result(self, weights: dict[str, Tensor], starts: Starts, plan: Schedule, means: list[float]) -> Group:
        back = plan.order.argsort()
        rows = torch.from_numpy(back).to(next(iter(weights.values())).device)
        changes: dict[str, Tensor | Product] = {
            name: (weights[name] - starts.trees[name])[rows]
            if name in weights
            else torch.zeros_like(starts.stacked(name))
            for name in self._names
        }
        return Group(changes, plan.num_steps[back].tolist(), [means[row] for row in back])
