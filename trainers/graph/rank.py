"""One rank of a graph pipeline: some layers on some of the vertices, an epoch, an exact evaluation, and its state.

An epoch is one optimizer step over all training vertices:

    chunks     forward in the epoch's order, back in reverse; rows of other ways are exchanged inside the layers
    ways       gradients are summed over the ways of each stage
    one vector loss, norms, the wish to stop and the bytes sent are summed over all ranks
    update     one version of the weights an epoch: rows of the history may be old, weights never are

Source: GNNPipe (arXiv:2308.10087), as its artefact does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from strategies.graph.layout import Layout, layout
from strategies.graph.structure import Graph
from strategies.seeds import integer
from trainers import activations, models
from trainers.data.graphs.base import GraphData
from trainers.graph.chunk import UNLABELLED, GraphChunk
from trainers.graph.chunked import ChunkView
from trainers.graph.convolutions import graph_chain
from trainers.graph.exchange import Exchange
from trainers.graph.reach import Reach
from trainers.graph.selection import Selection
from trainers.graph.settings import Settings
from trainers.local import NotFinite
from trainers.loop import Outcome, Spans, since
from trainers.pipeline.boundaries import Agreement, Boundary
from trainers.pipeline.collective import Collective
from trainers.pipeline.interpreter import Batch, Interpreter, Span
from trainers.pipeline.keeping import commit_ranges, make_saver
from trainers.pipeline.layers import Layer
from trainers.pipeline.members import Members
from trainers.pipeline.part import Part
from trainers.pipeline.state import export, restore
from trainers.pipeline.ties import share_ties
from trainers.pipeline.transport import Transport
from trainers.pipeline.update import Update

_HEAD = 4
"""Numbers at the head of an epoch's vector: the loss, the wish to stop, bytes between stages and between ways."""

PARTS = ("train", "val", "test")


@runtime_checkable
class Decays(Protocol):
    """A model whose parameters decay by different factors of the optimizer's weight decay."""

    def decay_groups(self) -> list[tuple[float, list[str]]]:
        """Return factors and the parameters they are for."""
        ...


def divided(settings: Settings, data: GraphData) -> Layout:
    """Return who has which vertices.

    Raises:
        ValueError: when there are fewer vertices than chunks.
    """
    graph = Graph(np.asarray(data.indptr), np.asarray(data.indices))
    return layout(graph, settings.ways, settings.slots, method=settings.chunking, seed=settings.layout_seed)


class EpochResult(NamedTuple):
    """What an epoch came to, the same on every rank.

    Args:
        loss: mean over the training vertices, before the update. norm: of the whole gradient; NaN when not clipped.
        boundary_bytes, exchange_bytes: sent between stages, and between the ways of stages.
        stop: whether some rank asked to stop.
    """

    loss: float
    norm: float
    boundary_bytes: int
    exchange_bytes: int
    stop: bool

    def outcome(self) -> Outcome:
        """Return the figures by metric name."""
        values = {"train/loss": self.loss}
        values |= {"comm/boundary_bytes": float(self.boundary_bytes), "comm/exchange_bytes": float(self.exchange_bytes)}
        return Outcome(values if math.isnan(self.norm) else {**values, "train/gradient_norm": self.norm}, self.stop)


class GraphRank:
    """One stage of one way.

    Args:
        data: the whole graph, which may be mapped into memory; only what this rank reads is copied.
        cut: who has which vertices; see `divided`.
        between: messages between the stages of this way. among: between the ways of this stage; None where alone.
    """

    def __init__(
        self,
        settings: Settings,
        data: GraphData,
        cut: Layout,
        stage: int,
        way: int,
        between: Transport,
        among: Transport | None,
        collective: Collective,
        device: torch.device,
    ) -> None:
        self.settings, self.stage, self.way = settings, stage, way
        self._between, self._collective, self._device = between, collective, device
        self._exchange = Exchange(among, way, settings.ways, settings.slots)
        dtype = getattr(torch, settings.model["dtype"])
        graph = Graph(np.asarray(data.indptr), np.asarray(data.indices))
        self.reach = Reach(graph, cut, way, dtype=dtype, device=device, kernel=settings.kernel)
        own = cut.way(way)
        features = None
        if stage == 0:
            features = torch.from_numpy(np.asarray(data.x[self.reach.vertices])).to(device, dtype)
        self._labels = torch.from_numpy(np.asarray(data.y[own])).to(device)
        self._masks = {
            name: torch.from_numpy(np.asarray(getattr(data, f"{name}_mask")[own])).to(device) for name in PARTS
        }
        self._counts = {name: int(np.asarray(getattr(data, f"{name}_mask")).sum()) for name in PARTS}
        self._targets = torch.where(self._masks["train"], self._labels, torch.full_like(self._labels, UNLABELLED))
        self.view = ChunkView(
            self.reach,
            self._exchange,
            features,
            refresh=settings.refresh,
            correction=settings.correction,
            keep=settings.recompute,
        )
        model = models.build(
            settings.model,
            input_shape=(data.num_features,),
            num_classes=data.num_classes,
            seed=settings.model_seed,
        )
        whole = graph_chain(model)
        self._heads = activations.heads_of({layer.index: layer.module for layer in whole.layers})
        self.part: Part[GraphChunk] = Part(whole, settings.layers, settings.placement, stage, self._make_chunk, device)
        self.update = Update(
            self.part,
            settings.optimizer,
            settings.learning_rate,
            settings.clip_norm,
            settings.epochs,
            settings.shaping,
            model.decay_groups() if isinstance(model, Decays) else (),
        )
        self._members = Members(self.part, way, settings.ways, collective, f"stage {stage}")
        self.selection = Selection(self.part, settings.patience)
        self._chunk = self.part.chunks[0]
        self._boundaries = {training: self._agree(training) for training in (True, False)}
        self._flush()
        self.spans: list[Span] = []

    def _make_chunk(self, layers: list[Layer], position: int) -> GraphChunk:
        saver = make_saver(self.settings.memory, layers, self._heads)
        return GraphChunk(layers, position, self.settings.stages, self.view, saver)

    def _agree(self, training: bool) -> Boundary:
        """Agree with the stages beside on what travels for a vertex, by two dry ones."""
        features = self.view.features
        inputs = None if features is None else features.new_zeros(2, features.shape[1])
        agreement = Agreement(self._chunk, self._between, self.settings.placement, int(training))
        boundary = agreement.settle(2, inputs, training=training)
        return agreement.back(boundary) if training else boundary

    # ------------------------------------------------------------------------------------------------- an epoch

    def step(self, number: int, stop: bool = False) -> Outcome:
        """As `loop.Work.step`."""
        return self.epoch(number, stop).outcome()

    def epoch(self, number: int, stop: bool = False) -> EpochResult:
        """Train one epoch, from 1.

        Args:
            stop: this rank's wish to stop.

        Raises:
            NotFinite: when the loss or the norm of the gradient is not. LayerFailed: from a layer.
        """
        settings = self.settings
        self.update.begin()
        self._members.begin()
        random = torch.get_rng_state()
        sent = (self._between.sent_bytes, self._exchange.sent_bytes)
        self.view.begin_epoch()
        batch = Batch(
            [self.reach.size(slot) for slot in range(settings.slots)],
            [1 / self._counts["train"]] * settings.slots,
            integer(settings.seed, "layers", number, self.way),
            self._inputs,
            lambda slot: self._targets[self.reach.rows(slot)],
            [not settings.recompute] * settings.slots,
        )
        run = self._interpreter(batch, settings.actions(self.stage, number), training=True)
        run.run()
        self.spans = run.spans
        torch.set_rng_state(random)
        self.view.end_epoch(number)
        _finish(self._members.finish())
        commit_ranges(self.part.chunks)
        _finish(share_ties(self.part.ties, self.part.copies, self.stage, self._between))
        self._flush()
        vector = torch.zeros(_HEAD + len(self.part.names), dtype=torch.float64)
        vector[0] = sum(float(run.losses[slot]) for slot in sorted(run.losses))
        vector[1] = float(stop)
        vector[2] = float(self._between.sent_bytes - sent[0])
        vector[3] = float(self._exchange.sent_bytes - sent[1])
        if settings.clip_norm is not None and self.way == 0:
            self.update.add_norms(vector, _HEAD)
        vector = self._sum(vector)
        loss, norm = float(vector[0]), math.sqrt(float(vector[_HEAD:].sum()))
        if not math.isfinite(loss) or not math.isfinite(norm):
            told = f"loss {loss}" if settings.clip_norm is None else f"loss {loss}, gradient norm {norm}"
            raise NotFinite(f"training diverged at epoch {number}: {told}")
        self.update.apply(number, norm)
        norm = norm if settings.clip_norm is not None else math.nan
        return EpochResult(loss, norm, int(vector[2]), int(vector[3]), bool(vector[1]))

    def _interpreter(self, batch: Batch, actions: list[Any], *, training: bool) -> Interpreter:
        boundaries = _Scaled(self._boundaries[training])
        return Interpreter(self.part.chunks, self.settings.placement, self._between, [boundaries], batch, actions)

    def _inputs(self, slot: int) -> Tensor:
        assert self.view.features is not None
        return self.view.features[self.reach.rows(slot)]

    def _sum(self, vector: Tensor) -> Tensor:
        pending = self._collective.sum("all", vector)
        while not pending.ready():
            pass  # never goes round: ranks that take turns wait inside, and processes in `result`
        return pending.result()

    def _flush(self) -> None:
        self._between.flush()
        self._exchange.flush()

    # ---------------------------------------------------------------------------------------------- evaluation

    def evaluate(self, number: int) -> dict[str, float]:
        """Measure the model on the whole graph, exactly, after epoch `number`, and note whether it is the best.

        Returns:
            By metric name: accuracy of train, val and test, loss of val and test, and what is best so far.
        """
        total = torch.zeros(2 * len(PARTS), dtype=torch.float64)

        def score(_: int, returned: Any) -> None:
            right = returned.argmax(-1) == self._labels
            losses = torch.nn.functional.cross_entropy(returned, self._labels.clamp(min=0), reduction="none")
            for place, name in enumerate(PARTS):
                mask = self._masks[name]
                total[2 * place] += float(losses[mask].double().sum())
                total[2 * place + 1] += int(right[mask].sum())

        features = self.view.features
        own = self.reach.num_own
        inputs = None if features is None else lambda _: features[:own]
        batch = Batch([own], [], 0, inputs, None, [], score)
        actions = [action._replace(microbatch=0) for action in self.settings.actions(self.stage, 1)[:1]]
        self._interpreter(batch, actions, training=False).run()
        self._flush()
        sums = self._sum(total).tolist()
        found = {}
        for place, name in enumerate(PARTS):
            if name != "train":  # a step's loss has that name, with dropout and the rows it saw
                found[f"{name}/loss"] = sums[2 * place] / self._counts[name]
            found[f"{name}/accuracy"] = sums[2 * place + 1] / self._counts[name]
        found |= self.selection.take(number, found["val/accuracy"], found["test/accuracy"])
        return found

    def spans_since(self, began_s: float) -> Spans:
        """Return the spans of the last epoch, in seconds since `began_s` on this process's clock."""
        return since(began_s, self.spans)

    @property
    def ends(self) -> bool:
        """Whether no better model is waited for."""
        return self.selection.ends

    # --------------------------------------------------------------------------------------------------- state

    def export(self) -> dict[str, dict[str, Tensor]]:
        """Return this rank's part of what a checkpoint holds.

        Beside what a pipeline's has: `history`, older rows by site and way; `best` and `selection`, see `Selection`.
        Of the ways of a stage, the first one has the weights.
        """
        trees = export(self, self.way)
        if self.way == 0:
            trees |= self.selection.export(first=self.stage == 0)
        trees["history"] = {f"{name}/{self.way}": rows for name, rows in self.view.history().items()}
        return trees

    def restore(self, trees: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take this rank's part out of the whole state."""
        restore(self, trees, self.way)
        self.selection.restore(trees)
        suffix = f"/{self.way}"
        self.view.remember(
            {
                name.removesuffix(suffix): rows
                for name, rows in trees.get("history", {}).items()
                if name.endswith(suffix) and int(name.split(".")[0]) in self._layers()
            }
        )

    def _layers(self) -> set[int]:
        return {layer.index for layer in self._chunk.layers}


class _Scaled(dict[tuple[int, bool], Boundary]):
    """Boundaries of any number of vertices, from that of two."""

    def __init__(self, of_two: Boundary) -> None:
        super().__init__()
        self._of_two = of_two

    def __missing__(self, key: tuple[int, bool]) -> Boundary:
        size, _ = key
        given = self._of_two
        self[key] = given._replace(
            inputs=tuple(spec._replace(shape=(size, *spec.shape[1:])) for spec in given.inputs),
            outputs=tuple(spec._replace(shape=(size, *spec.shape[1:])) for spec in given.outputs),
        )
        return self[key]


def _finish(waiting: Iterator[None]) -> None:
    """Run a generator through: where it would yield, transports and sums of turns wait for others themselves."""
    for _ in waiting:
        pass
