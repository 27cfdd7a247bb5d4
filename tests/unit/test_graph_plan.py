"""What `plan` and `validate` say of a graph pipeline, held against what a run then counts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from cluster import inventory
from cluster.inventory import Node
from orchestrator.cli import cli, main
from orchestrator.config import format_override, load_experiment
from orchestrator.errors import ConfigError
from orchestrator.graph_plan import GraphPlan
from orchestrator.graph_stages import settings_of
from orchestrator.planning import plan
from orchestrator.preparing import prepare
from trainers.graph.inline import InlineGraphPipeline

PARAMETERS = 8 * 6 + 6 + 2 * 6 * 6 + 6 * 3 + 3


def raw(**strategy: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"name": "sbm", "vertices": 120, "classes": 3, "degree": 4, "features": 8},
        "model": {"name": "gcnii", "layers": 2, "hidden": 6},
        "strategy": {"kind": "graph-pipeline", "chunks": 3, "epochs": 2, "partition": [2, 2], **strategy},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
    }


def drawn(**strategy: Any) -> tuple[GraphPlan, str]:
    planned = plan(raw(**strategy))
    assert isinstance(planned, GraphPlan)
    console = Console(record=True, width=200, soft_wrap=True, file=io.StringIO())
    planned.render(console)
    return planned, console.export_text()


def row(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(name))[len(name) :].split()


def test_the_bytes_of_a_plan_are_those_that_a_run_counts() -> None:
    planned, text = drawn(ways=2)
    prepared = prepare(load_experiment(raw(ways=2)))
    stages = planned.stages
    run = InlineGraphPipeline(settings_of(prepared.experiment, stages.layers), prepared.dataset, cut=stages.cut)
    counted = run.epoch(1)
    assert (counted.boundary_bytes, counted.exchange_bytes) == (stages.epoch.boundary, stages.epoch.exchange)
    assert stages.epoch.boundary == 2 * 120 * (6 + 6) * 4, (
        "GCNII hands on two rows of 6 numbers a vertex, there and back"
    )
    assert row(text, "sent between stages")[:2] == ["11.2", "KiB"]
    assert row(text, "mean replicas")[0] == f"{stages.epoch.replicas:.3f}"


def test_a_plan_tells_how_the_graph_is_cut() -> None:
    planned, text = drawn(ways=2)
    chunks, cut = planned.stages.chunks, planned.stages.cut
    graph = prepare(load_experiment(raw(ways=2))).dataset
    assert sum(chunks.edges) == graph.num_edges
    assert row(text, "vertices of a chunk") == [f"{n:.0f}" for n in (min(cut.sizes()), 20, max(cut.sizes()), 120)]
    assert row(text, "edges into a chunk")[-1] == str(graph.num_edges)
    place = {int(v): (way, slot) for way in range(2) for slot in range(3) for v in cut.rows(way, slot)}
    ends = [(place[v], place[int(u)]) for v in range(120) for u in graph.indices[graph.indptr[v] : graph.indptr[v + 1]]]
    assert chunks.between_ways == sum(to[0] != of[0] for to, of in ends)
    assert chunks.between_chunks == sum(to[1] != of[1] for to, of in ends)
    assert row(text, "edges between ways")[0] == str(chunks.between_ways)


def test_a_plan_draws_the_epoch_and_compares_with_one_process() -> None:
    planned, text = drawn()
    assert "stage 0 F0" in text and "stage 1" in text and "forward of an epoch's chunk 2" in text
    assert planned.num_parameters == PARAMETERS and row(text, "parameters") == [str(PARAMETERS)]
    assert "25.0% if all stages were equal" in text, "(K-1) / (S+K-1) of 2 stages and 3 chunks"
    assert "ways" not in text.split("-- vertices")[1], "nothing of ways where there is one"
    assert planned.exit_code == 0 and "Nothing was started." in text


def test_tables_and_weights_of_a_rank_are_counted_as_they_are() -> None:
    planned, _ = drawn()
    prepared = prepare(load_experiment(raw()))
    run = InlineGraphPipeline(settings_of(prepared.experiment, planned.stages.layers), prepared.dataset)
    run.epoch(1)
    for rank, memory in zip(run.ranks, planned.memory, strict=True):
        sites = rank.view._sites.values()
        held = [tensor for site in sites for tensor in (site.table.rows, site.table._kept, site._gradients[:-1])]
        assert memory.tables == sum(tensor.numel() * 4 for tensor in held) > 0
        state = [value for each in rank.update.optimizer.state.values() for value in each.values() if value.numel() > 1]
        weights = sum(parameter.numel() for parameter in rank.part.trained)
        assert memory.weights == 4 * (3 * weights + sum(value.numel() for value in state))


def test_recomputing_holds_fewer_activations() -> None:
    (kept, _), (again, text) = drawn(chunks=8), drawn(chunks=8, recompute=True)
    for with_all, with_few in zip(kept.memory, again.memory, strict=True):
        assert with_few.activations < with_all.activations
    head = next(line for line in text.splitlines() if line.split()[:2] == ["stage", "layers"])
    assert head.split()[-2:] == ["again", "layers"]
    for stage, spans in enumerate(again.stages.predicted.recomputed):
        (each,) = {round(span.end_s - span.start_s, 12) for span in spans}
        assert len(spans) == 8 and 0 < each == pytest.approx(sum(cost.again_s for cost in again.stages.of_stage(stage)))
    assert not any(kept.stages.predicted.recomputed) and not any(cost.again_s for cost in kept.stages.costs)


def test_ranks_beyond_the_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    total = {"CPU": 64.0, "memory": 1.0 * 2**30}
    monkeypatch.setattr(inventory, "local", lambda min_cpus=None: Node("local", "127.0.0.1", total, total))
    planned = plan({**raw(ways=2), "cluster": {"workers": 4}})
    (problem,) = planned.problems
    assert problem.startswith("4 ranks on 127.0.0.1 would need about 1.4 GiB") and planned.exit_code == 3


def test_planning_leaves_the_random_stream_alone() -> None:
    before = torch.get_rng_state()
    plan(raw())
    assert torch.equal(torch.get_rng_state(), before)


LOCAL = {"kind": "local-learning", "modules": 2, "rule": {"name": "dgl"}}
PIPELINE: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "mlp"}}


@pytest.mark.parametrize(
    "changes, told",
    [
        ({}, f"x: graph-pipeline of 2 stages x 1 way, 3 chunks, sbm with 120 vertices and # edges, {PARAMETERS} para"),
        ({"strategy.ways": 2}, "graph-pipeline of 2 stages x 2 ways, 3 chunks each, sbm with 120 vertices and # edges"),
        (
            {**PIPELINE, "strategy": {"kind": "pipeline", "schedule": "1f1b"}},
            "ok  x: pipeline of 2 stages, 1f1b with 8 micro-batches, digits with 1,438 examples",
        ),
        (
            {**PIPELINE, "strategy": {"kind": "pipeline", "replicas": 3, "schedule": "gpipe", "microbatches": 1}},
            "pipeline of 2 stages x 3 replicas, gpipe with 1 micro-batch, digits",
        ),
        (
            {"data": {"name": "digits"}, "model": {"name": "mlp", "hidden": [16, 16]}, "strategy": LOCAL},
            "ok  x: local-learning dgl of 2 modules, lossless, digits with 1,438 examples",
        ),
    ],
)
def test_validate_says_what_a_gang_trains(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(raw()))
    edges = prepare(load_experiment(raw())).dataset.num_edges
    overrides = [format_override(field, value) for field, value in changes.items()]
    result = CliRunner().invoke(cli, ["validate", str(file), *overrides])
    assert result.exit_code == 0, result.output
    assert told.replace("#", str(edges)) in result.output


def test_more_messages_than_can_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.graph_stages.NUM_MESSAGES", 2 * 2 * (3 + 1))
    assert drawn(ways=2)[0].stages.epoch.exchange, "two aggregations in all, two ways, three chunks and an evaluation"
    with pytest.raises(ConfigError, match="got 4, expected at most 3 with 2 ways and 2 aggregations of a stage"):
        plan(raw(ways=2, chunks=4, stages=1, partition="time"))
    monkeypatch.setattr("orchestrator.graph_stages.NUM_MICROBATCHES", 3)
    with pytest.raises(ConfigError, match="got 4, expected at most 3, which messages can tell apart"):
        plan(raw(chunks=4))


def test_validate_refuses_what_could_not_be_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(json.dumps(raw(chunks=121)))
    with pytest.raises(SystemExit) as stopped:
        main(["validate", str(file)])
    assert stopped.value.code == 2
    assert "got 121 for each of 1 ways, 121 in all, more than the 120 vertices" in capsys.readouterr().err
