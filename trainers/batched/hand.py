"""Trains a group of clients whose model is a chain: the loop over steps around `chain` and `span`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainers import optimizers
from trainers.batched.block import Block
from trainers.batched.chain import Convolution, Dense, Link
from trainers.batched.orders import Schedule, firsts
from trainers.batched.span import Span, pays
from trainers.batched.stacked import Group, Product
from trainers.batched.starts import Starts
from trainers.batched.stepper import Corrections, Stepper, clip_factors, squared_norms
from trainers.local import LocalSettings, Task


class Hand:
    """A chain ready to train groups of clients.

    Args:
        links: of `chain.parse`. names: the model's tensors, in its order.
    """

    def __init__(self, links: Sequence[Link], names: Sequence[str], settings: LocalSettings) -> None:
        self._links = list(links)
        self._names = list(names)
        self._settings = settings
        self._lr = optimizers.plain_lr(settings.optimizer)
        self._images = isinstance(links[0], Convolution)

    def train(self, tasks: Sequence[Task], block: Block, plan: Schedule) -> Group:
        """Train one group; `tasks` and `block` in the group's order, the result likewise."""
        tasks = [tasks[place] for place in plan.order]
        run = _Run(self._links, self._names, self._settings, self._lr, tasks, block, plan, self._images)
        losses = torch.zeros(len(tasks), dtype=torch.float64, device=block.x.device)
        for step in range(plan.chosen.shape[1]):
            run.step(step, losses)
        means = (losses.cpu().numpy() / plan.counts.sum(axis=1)).tolist()
        return run.result(means)


class _Run:
    """One group's training."""

    def __init__(
        self,
        links: list[Link],
        names: list[str],
        settings: LocalSettings,
        lr: float | None,
        tasks: Sequence[Task],
        block: Block,
        plan: Schedule,
        images: bool,
    ) -> None:
        self._links, self._names, self._settings, self._plan, self._images = links, names, settings, plan, images
        self._starts = Starts([task.start for task in tasks], names, block.x.device)
        self._corrections = Corrections([task.correction for task in tasks], self._starts.trees)
        clients, device = len(tasks), block.x.device
        self._actives = [int((plan.num_steps > step).sum()) for step in range(plan.chosen.shape[1])]
        begins = torch.from_numpy(firsts(block.sizes)[plan.order]).to(device)
        self._chosen = torch.from_numpy(plan.chosen).to(device)
        self._places = self._chosen + begins[:, None, None]
        self._targets = block.y.index_select(0, self._places.flatten()).view(*self._places.shape, 1)
        self._x = _rows(block.x) if images else block.x.flatten(1)
        self._shape = block.x.shape[1:]
        self._span = self._made_span(settings, lr, begins, clients)
        kept = [name for link in links for name in link.names if self._span is None or name != links[0].names[0]]
        self._weights = {name: self._starts.stacked(name, channels_last=True) for name in kept}
        in_place = lr is not None and settings.clip_norm is None and not self._corrections
        self._lr = lr if in_place else None
        self._stepper = None if in_place else Stepper(settings.optimizer, self._stepped())

    def _made_span(self, settings: LocalSettings, lr: float | None, begins: Tensor, clients: int) -> Span | None:
        """Return the first layer as a span where it can be one and that pays."""
        first, plan = self._links[0], self._plan
        kind, arguments = optimizers.resolve(settings.optimizer)
        if not isinstance(first, Dense) or kind is not torch.optim.SGD:
            return None
        if first.names[0] in self._corrections.offsets:
            return None
        decays = bool(arguments.get("weight_decay"))
        if settings.clip_norm is not None and (decays or self._corrections.proximal is not None):
            return None  # the gradient then leaves the span, and its norm is more than a product of examples
        start = self._starts.trees[first.names[0]]
        outputs, inputs = start.shape[-2:]
        size = int(plan.sizes.max())
        if not pays(size, int(plan.counts[0].sum()), int(plan.num_steps[0]), inputs, outputs):
            return None
        if (plan.sizes == size).all() and (plan.order[1:] > plan.order[:-1]).all():
            examples = self._x
        else:
            numbers = torch.arange(size, device=begins.device)
            own = torch.from_numpy(plan.sizes).to(begins.device)[:, None]
            places = begins[:, None] + torch.where(numbers < own, numbers, 0)
            examples = self._x.index_select(0, places.flatten())
        self._padded = torch.arange(clients, device=begins.device)[:, None, None] * size + self._chosen
        return Span(examples.view(clients, size, -1), start, decays)

    def _stepped(self) -> list[Tensor]:
        return [*self._weights.values(), *(self._span.parameters() if self._span else [])]

    def step(self, step: int, losses: Tensor) -> None:
        """Make one step of the clients still at work and add their summed losses."""
        active = self._actives[step]
        counts = self._plan.counts[:active, step]
        width = int(counts.max())
        places = self._places[:active, step, :width]
        weights = {name: weight[:active] for name, weight in self._weights.items()}
        hidden = self._forward(step, active, places, weights)
        mask: Tensor | None = None
        share: Tensor | float = 1 / width
        if int(counts.min()) < width:
            numbers = torch.from_numpy(counts).to(hidden.device)[:, None]
            mask = torch.arange(width, device=hidden.device) < numbers
            share = (mask.to(hidden.dtype) / numbers).unsqueeze(-1)
        targets = self._targets[:active, step, :width]
        logs = hidden.log_softmax(dim=-1)
        own = logs.gather(-1, targets).squeeze(-1)
        losses[:active] -= (own if mask is None else torch.where(mask, own, 0.0)).sum(dim=1)
        rows = logs.exp_()
        rows.scatter_add_(-1, targets, rows.new_full((1, 1, 1), -1.0).expand_as(targets))
        rows *= share
        self._backward(step, rows, weights)

    def _forward(self, step: int, active: int, places: Tensor, weights: dict[str, Tensor]) -> Tensor:
        rest = self._links
        width = places.shape[1]
        if self._span is not None:
            padded = self._padded[:active, step, :width]
            bias = weights[rest[0].names[1]] if len(rest[0].names) > 1 else None
            hidden, rest = self._span.forward(padded, bias), rest[1:]
        elif self._images:
            channels, height, across = self._shape
            hidden = self._x.index_select(0, places.t().flatten()).view(width, active, height, across, channels)
            hidden = hidden.permute(0, 1, 4, 2, 3).reshape(width, active * channels, height, across)
        else:
            hidden = self._x.index_select(0, places.flatten()).view(active, width, -1)
        for link in rest:
            hidden = link.forward(hidden, [weights[name] for name in link.names], active)
        return hidden

    def _backward(self, step: int, rows: Tensor, weights: dict[str, Tensor]) -> None:
        sink = _InPlace(weights, self._lr) if self._lr is not None else _Kept()
        first, rest = self._links[0], self._links
        if self._span is not None:
            rest = rest[1:]
        for link in reversed(rest):
            rows = link.backward(rows, [weights[name] for name in link.names], sink, link is first)
        padded = None
        if self._span is not None:
            padded = self._padded[: len(rows), step, : rows.shape[1]]
            if len(first.names) > 1:
                sink.whole(first.names[1], rows.sum(dim=1))
            if self._lr is not None:
                self._span.descend(padded, rows, self._lr)
        if self._stepper is not None:
            assert isinstance(sink, _Kept)
            self._stepper.step(self._gradients(sink, weights, padded, rows))

    def _gradients(self, sink: _Kept, weights: dict[str, Tensor], padded: Tensor | None, rows: Tensor) -> list[Tensor]:
        """Return corrected and clipped gradients in the order of `_stepped`."""
        kept = [
            self._corrections.correct(name, sink.gradients[name], weight) if self._corrections else sink.gradients[name]
            for name, weight in weights.items()
        ]
        inner: list[Tensor] = []
        if self._span is not None and padded is not None:
            inner = self._span.gradients(padded, rows, self._corrections.proximal)
        if self._settings.clip_norm is not None:
            squares = [squared_norms(gradient) for gradient in kept]
            if self._span is not None and padded is not None:
                squares.append(self._span.squared_norms(padded, rows))
            factors = clip_factors(squares, self._settings.clip_norm)
            kept = [gradient * factors.view(-1, *[1] * (gradient.dim() - 1)) for gradient in kept]
            inner = [gradient * factors.view(-1, *[1] * (gradient.dim() - 1)) for gradient in inner]
        return kept + inner

    def result(self, means: list[float]) -> Group:
        """Return the changes, in the order of the group."""
        changes: dict[str, Tensor | Product] = {}
        for name in self._names:
            if name in self._weights:
                changes[name] = self._weights[name].sub_(self._starts.trees[name])
            else:
                assert self._span is not None
                changes[name] = self._span.change()
        back = self._plan.order.argsort()
        if (back[1:] < back[:-1]).any():
            rows = torch.from_numpy(back).to(self._targets.device)
            changes = {
                name: change.rows(rows) if isinstance(change, Product) else change[rows]
                for name, change in changes.items()
            }
        return Group(changes, self._plan.num_steps[back].tolist(), [means[row] for row in back])


class _InPlace:
    """Plain SGD: gradients go straight into the weights."""

    def __init__(self, weights: dict[str, Tensor], lr: float) -> None:
        self._weights, self._lr = weights, lr

    def matrix(self, name: str, rows: Tensor, inputs: Tensor) -> None:
        self._weights[name].baddbmm_(rows.transpose(1, 2), inputs, alpha=-self._lr)

    def whole(self, name: str, gradient: Tensor) -> None:
        self._weights[name].sub_(gradient, alpha=self._lr)


class _Kept:
    """Any other optimizer: gradients are kept by name."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def matrix(self, name: str, rows: Tensor, inputs: Tensor) -> None:
        self.gradients[name] = torch.bmm(rows.transpose(1, 2), inputs)

    def whole(self, name: str, gradient: Tensor) -> None:
        self.gradients[name] = gradient


def _rows(images: Tensor) -> Tensor:
    """Return images as rows whose channels lie together, so that a batch of rows is a batch channels-last."""
    return images.permute(0, 2, 3, 1).flatten(1)
