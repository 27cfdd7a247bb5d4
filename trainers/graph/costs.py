"""What each layer of a graph network costs, measured on one chunk, and what it hands on and aggregates.

The layers run one at a time on the first chunk, forward and backward, and forward again where chunks are computed
twice, as a stage would run them; the smallest of some repetitions counts, since whatever else runs on the machine only
adds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from strategies.graph.layout import layout
from strategies.graph.structure import Graph
from trainers.activations import heads_of
from trainers.data.graphs.base import GraphData
from trainers.graph.chunk import GraphChunk
from trainers.graph.chunked import ChunkView
from trainers.graph.convolutions import graph_chain
from trainers.graph.exchange import Exchange
from trainers.graph.reach import Reach
from trainers.graph.settings import Settings
from trainers.graph.tables import Returns
from trainers.pipeline.boundaries import reached
from trainers.pipeline.chunk import Carry, Run
from trainers.pipeline.costs import Kept, timed
from trainers.pipeline.keeping import make_saver
from trainers.pipeline.layers import Layer
from trainers.threads import intra_op_threads


class GraphLayerCost(NamedTuple):
    """One layer, for one chunk.

    Args:
        name: as the model calls it, with its class.
        forward_s, backward_s: seconds.
        again_s: seconds of a second forward, which aggregates nothing anew; 0 where nothing is recomputed.
        activation_bytes: kept by autograd for backward, what layers before keep already left out.
        output_widths: values a vertex of each tensor that it hands on.
        returned_widths: of those whose gradients come back.
        sites: width of each aggregation in it that rows travel for, and whose gradients travel back for it.
        num_parameters, parameter_bytes: of its trained numbers.
    """

    name: str
    forward_s: float
    backward_s: float
    again_s: float
    activation_bytes: int
    output_widths: tuple[int, ...]
    returned_widths: tuple[int, ...]
    sites: tuple[tuple[int, Returns], ...]
    num_parameters: int
    parameter_bytes: int


def measure(
    model: nn.Module, data: GraphData, settings: Settings, *, threads: int = 1, repeats: int = 3
) -> list[GraphLayerCost]:
    """Measure every layer of a model on the first of as many chunks as there are in all.

    Raises:
        ModelError: when the model is no chain. LayerFailed: when a layer cannot take what the one before returns.
    """
    layers = graph_chain(copy.deepcopy(model)).layers
    with intra_op_threads(threads), torch.random.fork_rng(devices=[]):
        chunks, labels = _alone(layers, data, settings)
        view, features = chunks[0].view, chunks[0].view.features
        assert features is not None
        best = [[float("inf"), float("inf"), float("inf") if settings.recompute else 0.0] for _ in chunks]
        widths: list[tuple[int, ...]] = []
        known = {p.untyped_storage().data_ptr() for layer in layers for p in layer.module.parameters()}
        known.add(features.untyped_storage().data_ptr())
        counts: list[Kept] = []
        alive: list[Carry] = []  # so that no address is used again while bytes are counted
        for repeat in range(repeats):
            view.begin_epoch()
            carry: Carry = {"0": features[view.reach.rows(0)]}
            widths = []
            for times, chunk in zip(best, chunks, strict=True):
                view.forget()  # each layer enters the chunk for itself
                kept = Kept(known, carry) if repeat == 0 else None
                alive += [carry] if kept else []
                counts += [kept] if kept else []
                targets = labels if chunk.is_last else None
                work = partial(chunk.forward, Run(0, 0, True), carry, targets, 1 / len(labels))
                carry, seconds = timed(work, kept, chunk.saver)
                times[0] = min(times[0], seconds)
                if settings.recompute:
                    times[2] = min(times[2], timed(work)[1])
                widths.append(tuple(tensor.numel() // view.reach.size(0) for tensor in carry.values()))
            gradients: Carry = {}
            for times, chunk in zip(reversed(best), reversed(chunks), strict=True):
                gradients, seconds = timed(partial(chunk.backward, 0, gradients))
                times[1] = min(times[1], seconds)
        sites = view.widths()
        returned = _returned_widths(chunks, features)
    return [
        GraphLayerCost(
            f"{layer.name} ({type(layer.module).__name__})",
            forward,
            backward,
            again,
            kept.num_bytes,
            width,
            back,
            tuple(sites.get(layer.index, ())),
            sum(p.numel() for p in layer.module.parameters() if p.requires_grad),
            sum(p.numel() * p.element_size() for p in layer.module.parameters() if p.requires_grad),
        )
        for layer, (forward, backward, again), kept, width, back in zip(
            layers, best, counts, widths, returned, strict=True
        )
    ]


def _alone(layers: Sequence[Layer], data: GraphData, settings: Settings) -> tuple[list[GraphChunk], Tensor]:
    """Return each layer as a stage of its own on the first chunk, and the labels there."""
    graph = Graph(np.asarray(data.indptr), np.asarray(data.indices))
    num_chunks = settings.ways * settings.slots
    cut = layout(graph, 1, num_chunks, method=settings.chunking, seed=settings.layout_seed)
    dtype = getattr(torch, settings.model["dtype"])
    reach = Reach(graph, cut, 0, dtype=dtype, device=torch.device("cpu"), kernel=settings.kernel)
    features = torch.from_numpy(np.asarray(data.x[reach.vertices])).to(dtype)
    alone = Exchange(None, 0, 1, num_chunks)
    view = ChunkView(reach, alone, features, refresh=1, correction=settings.correction, keep=settings.recompute)
    heads = heads_of({layer.index: layer.module for layer in layers})
    chunks = [
        GraphChunk([layer], layer.index, len(layers), view, make_saver(settings.memory, [layer], heads))
        for layer in layers
    ]
    return chunks, torch.from_numpy(np.asarray(data.y[cut.rows(0, 0)])).clamp(min=0)


def _returned_widths(chunks: Sequence[GraphChunk], features: Tensor) -> list[tuple[int, ...]]:
    """Return the values a vertex of the gradients that come back for what each layer hands on.

    As ranks agree on them (`pipeline.boundaries`): those tensors that autograd reaches from the model's output.
    """
    carry: Carry = {"0": features.new_zeros(2, features.shape[1])}
    reaches: list[dict[str, frozenset[str]]] = []
    widths: list[dict[str, int]] = []
    for chunk in chunks:
        leaves, returned = chunk.probe(carry, training=True, followed=[n for n, x in carry.items() if x.requires_grad])
        reaches.append({name: reached(tensor, leaves) for name, tensor in returned.items()})
        widths.append({name: tensor[0].numel() for name, tensor in returned.items() if tensor.requires_grad})
        carry = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in returned.items()}
    asked = frozenset(reaches[-1])
    found: list[tuple[int, ...]] = []
    for reach, width in zip(reversed(reaches), reversed(widths), strict=True):
        found.insert(0, tuple(size for name, size in width.items() if name in asked))
        asked = frozenset[str]().union(*(reach[name] for name in asked))
    return found
