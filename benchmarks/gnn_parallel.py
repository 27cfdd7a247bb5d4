"""Full-graph training of deep graph networks: layer pipeline, graph parallel and hybrid, beside torch_geometric.

All sides train the same model on the same graph. Sides of one group alternate in one process group of single-thread
processes, in segments of some epochs; an epoch's seconds are those from one barrier to the next.

    pipeline    2 stages, chunks follow one another           graph     2 ways, rows at the cut exchanged in each layer
    ceiling     both stages' work side by side, on made-up boundaries, nothing sent: no pipeline of 2 can be faster
    hybrid      2 stages x 2 ways, against graph 4 ways: 4 processes, which share the cores of a smaller machine
    one csr     this project's sparse products in one process with 2 threads
    pyg         torch_geometric's GCNConv on an edge index in one process with 2 threads, gradients checked to be ours

Ratios are seconds of the other side over those of the pipeline, so that more than 1 means that the pipeline is faster:
the median over segments, with the least and the most. Bytes are counted, and compared with the formulas.

    python -m benchmarks.gnn_parallel [--graph large|pubmed] [--layers 4 8 16 32] [--segments 3] [--epochs 1]
    python -m benchmarks.gnn_parallel --megabits 1000     over a link of 1 Gbit/s between two network namespaces; root
    python -m benchmarks.gnn_parallel --sides hybrid      4 processes
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.limited_network import two_hosts
from benchmarks.pipeline_sides import spread
from benchmarks.silent import Silent
from benchmarks.workloads import Plain, in_processes
from strategies.graph import Layout, pipeline_bytes, replicas
from strategies.graph.propagation import propagation
from strategies.graph.structure import Graph
from trainers import models
from trainers.data.graphs import registry
from trainers.data.graphs.base import GraphData
from trainers.graph import program
from trainers.graph.rank import GraphRank, divided
from trainers.graph.settings import Settings
from trainers.pipeline.collective import LocalCollective
from trainers.pipeline.transport import Spec

MODES = {
    "pipeline": (2, 1),
    "graph": (1, 2),
    "ceiling": (2, 1),
    "hybrid": (2, 2),
    "graph 4": (1, 4),
    "one csr": (1, 1),
}
"""Stages and ways of each side."""
LARGE = {"name": "power-law", "vertices": 100_000, "degree": 20.0, "classes": 10, "features": 100}


def settings(mode: str, layers: int, arguments: argparse.Namespace) -> Settings:
    """Return the training of one side: a GCN with dropout, cut into equal numbers of layers but for `--fewer`."""
    stages, ways = MODES[mode]
    share = layers // stages - arguments.fewer
    model = {"name": arguments.model, "layers": layers, "hidden": arguments.hidden, "dropout": 0.5, "dtype": "float32"}
    count = layers if arguments.model in ("gcn", "sage") else layers + 2
    return Settings(
        model=model,
        seed=1,
        model_seed=1,
        stages=stages,
        ways=ways,
        slots=arguments.chunks if stages > 1 else 1,
        chunking="metis",
        layers=(share + (count - layers) // 2, count - share - (count - layers) // 2) if stages == 2 else (count,),
        shuffle=True,
        refresh=23,
        correction=2.0,
        recompute=False,
        kernel="auto",
        optimizer={"name": "adam", "lr": 1e-3},
        learning_rate={"name": "constant", "warmup_steps": 0, "final": 0.0},
        clip_norm=None,
        epochs=1_000_000,
        patience=None,
    )


def _zeros(spec: Spec) -> Tensor:
    return torch.zeros(spec.shape, dtype=spec.dtype)


class Ours:
    """One rank of a graph pipeline."""

    def __init__(self, rank: int, mode: str, chosen: Settings, data: GraphData, cut: Layout) -> None:
        self.idle = mode == "one csr" and rank > 0
        self.threads = 2 if mode == "one csr" else 1
        self.bytes = (0, 0)
        if self.idle:
            return
        if mode in ("ceiling", "one csr"):
            made = program.build(Plain(rank, 2), chosen, data, cut) if mode == "ceiling" else None
            if made is None:
                collective = LocalCollective({"all": 1, "stage 0": 1}, {}, 0)
                made = GraphRank(chosen, data, cut, 0, 0, Silent(_zeros), None, collective, torch.device("cpu"))
            else:  # shapes are agreed by now
                made._between, made._collective = Silent(_zeros), LocalCollective({"all": 1}, {}, 0)
            self.rank = made
        else:
            self.rank = program.build(Plain(rank, chosen.stages * chosen.ways), chosen, data, cut)

    def epoch(self, number: int) -> None:
        if self.idle:
            return
        torch.set_num_threads(self.threads)
        result = self.rank.epoch(number)
        torch.set_num_threads(1)
        self.bytes = (result.boundary_bytes, result.exchange_bytes)


class PyG:
    """torch_geometric, its GCNConv on an edge index, in one process."""

    def __init__(self, rank: int, chosen: Settings, data: GraphData) -> None:
        self.idle, self.bytes = rank > 0, (0, 0)
        if self.idle:
            return
        from torch_geometric.nn import GCNConv

        hidden, layers = chosen.model["hidden"], chosen.model["layers"]
        sizes = [data.num_features, *[hidden] * (layers - 1), data.num_classes]
        self.convs = torch.nn.ModuleList(GCNConv(a, b, cached=True) for a, b in pairwise(sizes))
        targets = np.repeat(np.arange(data.num_vertices), np.diff(data.indptr))
        self.edges = torch.from_numpy(np.stack([data.indices.astype(np.int64), targets]))
        self.x, self.y = torch.from_numpy(np.array(data.x)), torch.from_numpy(np.array(data.y))
        self.mask = torch.from_numpy(np.array(data.train_mask))
        self.optimizer = torch.optim.Adam(self.convs.parameters(), lr=1e-3, fused=True)
        model = models.build(
            chosen.model, input_shape=(data.num_features,), num_classes=data.num_classes, seed=chosen.model_seed
        )
        with torch.no_grad():
            for conv, layer in zip(self.convs, model.layers, strict=True):
                conv.lin.weight.copy_(layer.conv.weight)
                conv.bias.copy_(layer.conv.bias)

    def loss(self, training: bool = True) -> Tensor:
        x = self.x
        for place, conv in enumerate(self.convs):
            x = conv(torch.nn.functional.dropout(x, 0.5, training), self.edges)
            x = x.relu() if place < len(self.convs) - 1 else x
        return torch.nn.functional.cross_entropy(x[self.mask], self.y[self.mask])

    def epoch(self, number: int) -> None:
        if self.idle:
            return
        torch.set_num_threads(2)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()
        torch.set_num_threads(1)


def measure(
    rank: int,
    send: Callable[[Any], None],
    names: Sequence[str],
    chosen: Mapping[str, Settings],
    cuts: Mapping[str, Layout],
    data: GraphData,
    segments: int,
    epochs: int,
) -> None:
    """Run all sides by turns; rank 0 sends `(name -> seconds, name -> bytes)` for each segment."""
    sides: dict[str, Any] = {}
    for name in names:
        sides[name] = (
            PyG(rank, chosen[name], data) if name == "pyg" else Ours(rank, name, chosen[name], data, cuts[name])
        )
    numbers = dict.fromkeys(names, 0)
    for segment in range(-1, segments):
        seconds = {}
        for name in list(names) if segment % 2 == 0 else list(names)[::-1]:
            dist.barrier()
            began = time.perf_counter()
            for _ in range(1 if segment < 0 else epochs):
                numbers[name] += 1
                sides[name].epoch(numbers[name])
            dist.barrier()
            seconds[name] = (time.perf_counter() - began) / (1 if segment < 0 else epochs)
        if rank == 0 and segment >= 0:
            send((seconds, {name: side.bytes for name, side in sides.items()}))


def one_depth(data: GraphData, layers: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Print the table of one depth; return the ratios' medians."""
    names = ["hybrid", "graph 4"] if arguments.sides == "hybrid" else ["pipeline", "graph", "ceiling"]
    if arguments.sides == "all" and not arguments.megabits:
        names += ["one csr"] + (["pyg"] if arguments.model == "gcn" else [])
    first = names[0]
    chosen = {name: settings("one csr" if name == "pyg" else name, layers, arguments) for name in names}
    cuts = {name: divided(chosen[name], data) for name in names if name != "pyg"}
    num_ranks = 4 if arguments.sides == "hybrid" else 2
    rows: list[dict[str, float]] = []
    sent: dict[str, tuple[int, int]] = {}
    with two_hosts(arguments.megabits) if arguments.megabits else nullcontext([]) as hosts:
        given = (names, chosen, cuts, data, arguments.segments, arguments.epochs)
        for seconds, counted in in_processes(measure, num_ranks, *given, hosts=hosts):
            rows.append(seconds)
            sent = counted
    print(
        f"\n{data.name}, {arguments.model}, {layers} layers, H = {arguments.hidden}, {arguments.chunks} chunks a way, "
        f"stages of {' and '.join(map(str, chosen[first].layers))} layers"
    )
    print(f"  {'side':<10}{'s / epoch':>10}{'MB sent':>10}   {'its seconds over those of the ' + first}")
    ratios = {}
    for name in names:
        over = [row[name] / row[first] for row in rows]
        ratios[name] = statistics.median(over)
        megabytes = sum(sent[name]) / 1e6
        print(f"  {name:<10}{statistics.median(r[name] for r in rows):>10.3f}{megabytes:>10.1f}   {spread(over)}")
    other = names[1]
    graph = Graph(data.indptr, data.indices)
    alpha = replicas(propagation(graph, "sum"), cuts[other])
    if first == "pipeline":
        formula = pipeline_bytes([arguments.hidden], [arguments.hidden], data.num_vertices, 4)
        assert sent["pipeline"] == (formula, 0), f"{sent['pipeline']} bytes were counted, {formula} expected"
        print(f"  alpha {alpha:.3f}: L alpha / (K-1) = {layers * alpha:.2f}")
    print(f"  bytes of {other} over those of {first}: {sum(sent[other]) / sum(sent[first]):.2f}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--graph", choices=["large", "pubmed"], default="large")
    parser.add_argument("--model", choices=["gcn", "sage", "gcnii", "resgcn"], default="gcn")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--fewer", type=int, default=0, help="layers that the first stage has less than half of them")
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of each side in a segment")
    parser.add_argument("--megabits", type=int, default=0, help="limit of the link; 0: loopback")
    parser.add_argument("--sides", choices=["all", "ours", "hybrid"], default="all")
    parser.add_argument("--vertices", type=int)
    arguments = parser.parse_args()
    section: dict[str, Any] = {"name": "pubmed"} if arguments.graph == "pubmed" else dict(LARGE)
    if arguments.vertices:
        section["vertices"] = arguments.vertices
    data = registry.load(section, seed=1)
    print(f"{data.name}: {data.num_vertices:,} vertices, {data.num_edges:,} directed edges", flush=True)
    found = {layers: one_depth(data, layers, arguments) for layers in arguments.layers}
    for name in next(iter(found.values())):
        deep = [ratios[name] for layers, ratios in found.items() if layers >= 8]
        if deep:
            mean = math.exp(statistics.fmean(map(math.log, deep)))
            print(f"{name}: geometric mean over {len(deep)} depths of 8 and more: {mean:.3f}")


if __name__ == "__main__":
    main()
