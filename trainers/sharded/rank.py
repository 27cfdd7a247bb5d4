"""One rank of a sharded run: an optimizer step over the batches, evaluation, and its share of the state.

A step, on every rank alike:

    batches     forward and backward on DTensors; torch deduces how each tensor lies, and boxes where it must
    gradients   what is a sum over ranks becomes as its parameter lies: an all-reduce over the axes of the batch
    one vector  squared norms and the wish to stop are summed over all ranks
    update      clipped by the norm of the whole model's gradient; each rank moves its pieces

The mean over a batch is over all its examples, as every axis has the same number of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from strategies.optimizers.layerwise import Layerwise
from strategies.optimizers.pieces import Piece
from trainers import learning_rate, models, optimizers
from trainers.activations import ALPHA, BETA, Saving
from trainers.data import to_labels, to_tensor
from trainers.data.base import Dataset
from trainers.gradients import Shaping
from trainers.local import NotFinite
from trainers.loop import Outcome, Spans
from trainers.pipeline import losses
from trainers.pipeline.state import Trees, remember, remind
from trainers.sharded.layout import Layout
from trainers.sharded.settings import Settings

_HEAD = 2
"""Numbers of a step's vector: the wish to stop, and the squared norm of the gradient."""


class Rank:
    """One rank.

    Args:
        number: which. layout: where tensors lie. model: instead of building it; it is taken over.
    """

    ends = False

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        number: int,
        layout: Layout,
        device: torch.device,
        model: nn.Module | None = None,
    ) -> None:
        self.settings, self.layout = settings, layout
        self._dataset, self._number, self._device = dataset, number, device
        self._dtype = getattr(torch, settings.model["dtype"])
        if model is None:
            model = models.build(
                settings.model,
                input_shape=dataset.input_shape,
                num_classes=dataset.num_classes,
                seed=settings.model_seed,
            )
        self.model = model.to(device)
        layout.place(self.model)
        self.saving = Saving(settings.memory, self.model, settings.seed, piece_of=layout.pieces.of)
        self._loss = losses.build(settings.loss)
        self._parameters = dict(self.model.named_parameters())
        if self.saving.saver is not None:
            for parameter in self._parameters.values():
                self.saving.saver.leave(layout.local(parameter.detach()))
        trained = {name: p for name, p in self._parameters.items() if p.requires_grad}
        self._moved = {name: nn.Parameter(layout.local(p.detach())) for name, p in trained.items()}
        self._optimizer = optimizers.build(settings.optimizer, self._moved.items()) if self._moved else None
        if isinstance(self._optimizer, Layerwise) and self._splits:
            self._share_norms(self._optimizer)
        self._base_lr = [group["lr"] for group in self._optimizer.param_groups] if self._optimizer else []
        self.spans: list[tuple[str, int, int, float, float, float]] = []
        self._stops = False

    # ------------------------------------------------------------------------------------------------- one step

    def step(self, number: int, stop: bool = False) -> Outcome:
        """Train on the batches of step `number`, from 1; `stop` is this rank's wish to stop.

        Raises:
            NotFinite: when the loss or the norm of the gradient is not. LayerFailed: from a layer.
        """
        settings, layout = self.settings, self.layout
        counts, sent = (dict(counted) for counted in layout.sent)
        batches = settings.batches(len(self._dataset.train_y), number)
        total = sum(len(rows) for rows in batches)
        loss, self.spans = 0.0, []
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        with self._drawing():
            for index, rows in enumerate(batches):
                torch.manual_seed(settings.batch_seed(number, index))
                share = losses.weight(settings.loss["reduction"], len(rows), total)
                x, y = self.inputs(self._dataset.train_x[rows]), self._dataset.train_y[rows]
                loss += self.train_on(x, y, share, number, index)
        self.saving.commit()
        norm = self._update(number, loss, stop)
        after, num_bytes = layout.sent
        values = {"train/loss": loss, "comm/boundary_bytes": float(sum(num_bytes.values()) - sum(sent.values()))}
        if self._splits:
            values["comm/collectives"] = float(sum(after.values()) - sum(counts.values()))
            for by in sorted(num_bytes):
                values[f"comm/{by.replace('-', '_')}_bytes"] = float(num_bytes[by] - sent.get(by, 0))
        if settings.clip_norm is not None:
            values["train/gradient_norm"] = norm
        return Outcome(values, self._stops)

    def _share_norms(self, optimizer: Layerwise) -> None:
        """Tell an optimizer that goes by tensors' norms that it holds pieces of them, or copies."""
        names = list(self._moved)
        shapes = {name: tuple(self._parameters[name].shape) for name in names}
        pieces = {p: [Piece(name, shapes[name], 0, 0, p.numel())] for name, p in self._moved.items()}
        copies = torch.tensor([self.layout.copies(self._parameters[name]) for name in names], dtype=torch.float64)

        def total(squares: Tensor) -> Tensor:
            with self.layout.working():
                return self.layout.total(squares) / copies.to(squares.device)

        optimizer.shard(pieces, names, total)

    @property
    def _splits(self) -> bool:
        return self.settings.num_ranks > 1

    def train_on(self, x: Tensor, y: np.ndarray, share: float, step: int = 1, index: int = 0) -> float:
        """Add the gradients of batch `index` of a step, times its share of it; return its share of the loss."""
        layout = self.layout
        began = time.perf_counter()
        with layout.working():
            inputs = layout.give(x)
            with self._precision(), self.saving(step, index, inputs):
                returned = self.model(inputs)
            loss = self._loss(returned, layout.give(to_labels(y).to(self._device)))
            loss = loss if share == 1.0 else loss * share
            middle = time.perf_counter()
            loss.backward()  # type: ignore[no-untyped-call]
            value = float(layout.plain(loss.detach()))
        self.spans.append(("F", 0, index, began, began, middle))
        self.spans.append(("B", 0, index, middle, middle, time.perf_counter()))
        return value

    def gradients(self) -> None:
        """Give every piece that is moved what this rank holds of its gradient, summed over ranks."""
        with self.layout.working():
            for name, piece in self._moved.items():
                gradient = self.layout.gradient(self._parameters[name])
                piece.grad = None if gradient is None else optimizers.aligned(gradient, piece)

    def _update(self, number: int, loss: float, stop: bool) -> float:
        settings, layout = self.settings, self.layout
        self.gradients()
        moved = [(piece, layout.copies(self._parameters[name])) for name, piece in self._moved.items()]
        vector = torch.zeros(_HEAD, dtype=torch.float64)
        vector[0] = float(stop)
        if settings.clip_norm is not None:
            squares = [float(p.grad.double().square().sum()) / n for p, n in moved if p.grad is not None]
            vector[1] = math.fsum(squares)
        with layout.working():
            vector = layout.total(vector)
        self._stops, norm = bool(vector[0]), math.sqrt(float(vector[1]))
        if not math.isfinite(loss) or not math.isfinite(norm):
            told = f"loss {loss}" if settings.clip_norm is None else f"loss {loss}, gradient norm {norm}"
            raise NotFinite(f"training diverged at step {number}: {told}")
        if self._optimizer is None:
            return norm
        if settings.clip_norm is not None and norm > settings.clip_norm:
            torch._foreach_mul_([p.grad for p, _ in moved if p.grad is not None], settings.clip_norm / norm)
        self._shape(number)
        rate = learning_rate.factor(settings.learning_rate, number, settings.steps)
        for group, base in zip(self._optimizer.param_groups, self._base_lr, strict=True):
            group["lr"] = base * rate
        self._optimizer.step()
        return norm

    def _shape(self, number: int) -> None:
        """Clip by value, then add this rank's pieces of the noise, which is drawn whole."""
        shaping = Shaping.of(self.settings.clip_value, self.settings.gradient_noise, self.settings.seed)
        for name, moved in self._moved.items():
            if moved.grad is None or shaping.idle:
                continue
            if shaping.clip_value is not None:
                moved.grad.clamp_(-shaping.clip_value, shaping.clip_value)
            if shaping.noise is not None:
                like = self._parameters[name]
                drawn = shaping.noise.draw(name, 0, like.numel(), number - 1).view(like.shape).to(moved.grad)
                moved.grad.add_(self.layout.piece(drawn, like))

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        random = torch.get_rng_state()
        try:
            yield
        finally:
            torch.set_rng_state(random)

    def _precision(self) -> Any:
        if self.settings.precision is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def inputs(self, rows: Any) -> Tensor:
        """Return examples as the model takes them."""
        return to_tensor(rows, self._dataset, self._dtype).to(self._device)

    # ------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def evaluate(self, number: int) -> Mapping[str, float]:
        """Measure the model on the test examples; every rank finds the same.

        A batch that does not divide over the ranks is filled up with its first examples, which do not count.
        """
        dataset, settings = self._dataset, self.settings
        self.model.eval()
        loss = correct = count = 0.0
        for start in range(0, len(dataset.test_y), settings.evaluate_batch):
            rows = np.arange(start, min(start + settings.evaluate_batch, len(dataset.test_y)))
            filled = np.resize(rows, -(-len(rows) // settings.batch_ranks) * settings.batch_ranks)
            with self.layout.working(), self._precision():
                returned = self.model(self.layout.give(self.inputs(dataset.test_x[filled])))
                returned = self.layout.plain(returned)
            returned = _first(returned, len(rows), len(filled))
            targets = to_labels(dataset.test_y[rows]).to(self._device)
            mean = float(self._loss(returned, targets))
            loss += mean * (targets.numel() if settings.loss["reduction"] == "mean" else 1)
            if isinstance(returned, Tensor) and returned.dim() == targets.dim() + 1:
                correct += int((returned.argmax(-1) == targets).sum())
            count += targets.numel()
        return {"test/loss": loss / count, "test/accuracy": correct / count}

    # ------------------------------------------------------------------------------------------------------ state

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return this rank's share of the state, whole tensors: every rank gathers all, and keeps those of its turn."""
        trees: dict[str, dict[str, Tensor]] = {"model": {}, "counters": {}}
        turn = 0

        def keep(tree: str, name: str, tensor: Tensor) -> None:
            nonlocal turn
            if turn % self.settings.num_ranks == self._number:
                trees.setdefault(tree, {})[name] = tensor.detach().clone()
            turn += 1

        for name, parameter in self._parameters.items():
            keep("model", name, self.layout.whole(self.layout.local(parameter.detach()), parameter))
            held: dict[str, dict[str, Tensor]] = {}
            if self._optimizer is not None and name in self._moved:
                remember(self._optimizer, name, self._moved[name], held)
            for tree, named in held.items():
                keep(tree, name, self.layout.whole(named[name], parameter))
        for name, buffer in self.model.named_buffers():
            keep("model" if buffer.is_floating_point() else "counters", name, self.layout.plain(buffer))
        for tree, ranges in self.saving.export(self.layout.pieces.tells).items():
            trees[tree] = {place: tensor.clone() for place, tensor in ranges.items()}
        return trees

    @torch.no_grad()
    def restore(self, trees: Trees) -> None:
        """Take this rank's pieces out of the whole state."""
        has = self.layout.pieces.has
        self.saving.restore({tree: {n: t for n, t in trees.get(tree, {}).items() if has(n)} for tree in (ALPHA, BETA)})
        for name, buffer in self.model.named_buffers():
            tree = trees["model"] if buffer.is_floating_point() else trees.get("counters", {})
            if name in tree:
                self.layout.local(buffer).copy_(tree[name])
        for name, parameter in self._parameters.items():
            whole = trees["model"][name].to(self._device)
            self.layout.local(parameter.detach()).copy_(self.layout.piece(whole, parameter))
            if self._optimizer is None or name not in self._moved:
                continue
            own = {
                tree: {
                    name: self.layout.piece(values[name].to(self._device), parameter)
                    if values[name].dim()
                    else values[name]
                }
                for tree, values in trees.items()
                if tree.startswith("optimizer.") and name in values
            }
            remind(self._optimizer, name, self._moved[name], own)

    def spans_since(self, began_s: float) -> Spans:
        """Return what the rank did in the last step, in seconds since `began_s` on this process's clock."""
        return [(*span[:3], *(time_s - began_s for time_s in span[3:])) for span in self.spans]


def _first(returned: Any, size: int, given: int) -> Any:
    """Return what a model returned without what it returned for the examples that fill a batch up."""
    from torch.utils._pytree import tree_map

    def cut(leaf: Any) -> Any:
        return leaf[:size] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == given else leaf

    return returned if size == given else tree_map(cut, returned)
