"""The report of a graph pipeline's run: curves with the best epoch, both cuts, the timeline of all ranks, bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import listing
from orchestrator.progress import Progress
from orchestrator.report import write_report
from orchestrator.report.reading import read
from orchestrator.rundir import RunDirectory
from tests.unit.test_report_pipeline import Reader, spans

CUT: dict[str, Any] = {
    "kind": "graph-stages",
    "schedule": "gpipe",
    "ways": 2,
    "layers": [1, 3],
    "num_microbatches": 2,
    "chunk_vertices": [10, 12, 11, 13],
    "chunk_edges": [40, 41, 42, 77],
    "edges_between_chunks": 50,
    "edges_between_ways": 20,
    "stages": [
        {"layers": ["0 (Start)"], "forward_s": 0.002, "backward_s": 0.004, "num_parameters": 12_345},
        {"layers": ["1 (Gcnii)", "2 (Gcnii)", "3 (End)"], "forward_s": 0.003, "backward_s": 0.006, "num_parameters": 7},
    ],
    "bytes": {"boundary": 1000, "exchange": 2000, "weights": 300, "replicas": 0.25},
    "predicted_s": 0.04,
    "predicted_bubble": 0.3,
}
ACCURACIES = {0: (0.2, 0.1), 2: (0.7, 0.6), 4: (0.7, 0.65), 6: (0.6, 0.8)}
"""Of validation and test, by epoch."""


def make(
    root: Path, measured: Any = None, *, epochs: int = 6, sent: float = 1000.0, workers: int = 4, **told: Any
) -> RunDirectory:
    """A run of two stages and two ways whose best epoch is the second."""
    manifest = {"unit": "epoch", "step": epochs, "num_steps": 6, "status": "FINISHED"}
    run = RunDirectory.create(root, "graph", f"cluster: {{workers: {workers}}}\n", manifest)
    (run.path / "partition.json").write_text(json.dumps({**CUT, **told}))
    best = (-1, 0.0, 0.0)
    for epoch in range(epochs + 1):
        values = {"train/loss": 1 / epoch, "time/step_s": epoch / 10} if epoch else {}
        values |= {"comm/boundary_bytes": sent, "comm/exchange_bytes": 2000.0} if epoch else {}
        if epoch in ACCURACIES:
            val, test = ACCURACIES[epoch]
            best = (epoch, val, test) if val > best[1] else best
            values |= {"train/accuracy": 0.9, "val/accuracy": val, "test/accuracy": test, "val/loss": 1.5}
            values |= {"test/loss": 1.6, "best/epoch": best[0], "best/val_accuracy": best[1]}
            values["best/test_accuracy"] = best[2]
        run.log(epoch, float(epoch), 0.0, values)
    if measured is not None:
        run.event("timeline", step=epochs, stages=measured)
    return run


def four(**options: Any) -> Any:
    """The timeline of four ranks: both ways of a stage do the same."""
    first, last = spans("gpipe", 2, 2, **options)
    return [first, first, last, last]


def shown(run: RunDirectory) -> Reader:
    return Reader(write_report(run.path).read_text())


def test_a_page_tells_the_test_accuracy_where_validation_was_best_not_where_the_test_was(tmp_path: Path) -> None:
    text = shown(make(tmp_path)).text
    assert "best validation accuracy 70 % epoch 2 test accuracy there 60 % epoch 2" in text
    assert "best test accuracy" not in text and "80 % epoch 6" not in text


def test_a_page_speaks_of_epochs_and_shows_cuts_timeline_and_bytes(tmp_path: Path) -> None:
    run = make(tmp_path, four(unit_s=0.5))
    seen = shown(run)
    assert seen.ids == ["curves", "pipeline", "bytes", "time", "numbers", "events", "config", "environment"]
    assert seen.open == []
    assert "round" not in seen.text and "micro-batch" not in seen.text
    for text in (
        "epochs 6 of 6", "median epoch time 350 ms 100 ms to 600 ms",
        "sent between stages 6 kB 1 kB an epoch", "sent between ways 12 kB 2 kB an epoch",
        "train validation test", "best on validation",
        "2 stages x 2 ways, 2 chunks each. 25 % of the edges are between chunks. 10 % of the edges are between ways.",
        "On paper an epoch takes 40 ms with a bubble of 30 %, transfers left out.",
        "Epoch 6 as measured Chunks came in the order 0, 1.", "Measured: 3 s, bubble 33.3 %",
        "stage 0, way 0 stage 0, way 1 stage 1, way 0 stage 1, way 1",
        "stage 1, way 0: F0, forward of chunk 0 from 500 ms to 1 s: 500 ms waited 500 ms before",
        "Vertices of each chunk 10 to 13", "Edges into each chunk 40 to 77", "chunk, way by way",
        "0 1 0 (Start) 12.3 k 2 ms 4 ms", "1 3 1 (Gcnii) … 3 (End) 7 3 ms 6 ms",
        "between stages 1,000 B 1,000 B equal to the byte in all 6 epochs",
        "between ways 2,000 B 2,000 B equal to the byte in all 6 epochs",
        "gradients 300 B of a ring; not counted", "row is needed on 0.25 other ways in the mean.",
    ):  # fmt: skip
        assert text in seen.text, text
    assert "timeline" not in [event["kind"] for event in read(run).events]


def test_bytes_that_are_not_those_expected_are_told(tmp_path: Path) -> None:
    text = shown(make(tmp_path, sent=999.0)).text
    assert "between stages 1,000 B 999 B differs in 6 of 6 epochs" in text


@pytest.mark.parametrize(
    "ways, chunks, lanes",
    [(1, 4, "stage 0 stage 1 stage 2 stage 3"), (4, 1, "way 0 way 1 way 2 way 3")],
    ids=["pipeline", "graph"],
)
def test_lanes_are_named_by_what_tells_ranks_apart(tmp_path: Path, ways: int, chunks: int, lanes: str) -> None:
    run = make(tmp_path, four(), ways=ways, num_microbatches=chunks)
    assert lanes in shown(run).text
    named = json.loads((run.path / "timeline.trace.json").read_text())["traceEvents"]
    threads = [event["args"]["name"] for event in named if event["name"] == "thread_name"]
    assert " ".join(threads) == lanes
    assert {event["args"]["name"] for event in named if event["name"] == "process_name"} == {"measured, epoch 6"}


def test_a_timeline_of_one_process_is_told_from_one_of_several(tmp_path: Path) -> None:
    told = "no two compute at the same time"
    assert told in shown(make(tmp_path, four(), workers=0)).text
    assert told not in shown(make(tmp_path, four())).text


def test_many_chunks_are_drawn_by_size(tmp_path: Path) -> None:
    assert "chunks, by size" in shown(make(tmp_path, chunk_vertices=[5] * 300)).text


def test_whatever_is_in_the_files_is_text_and_breaks_nothing(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    told = {"ways": evil, "bytes": evil, "chunk_edges": [evil], "edges_between_ways": evil, "predicted_s": evil}
    stages = [{"layers": [evil], "forward_s": evil}, {"layers": evil}, evil]
    run = make(tmp_path, [[["F", 0, 0, 0, 2, 1]]], stages=stages, num_microbatches=evil, **told)
    seen = shown(run)
    assert "script" not in seen.tags
    assert "is damaged: the times of span 0 of stage 0" in seen.text
    assert not (run.path / "timeline.trace.json").exists()


def test_a_run_that_failed_before_its_first_epoch_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "x", "name: x\n", {"unit": "epoch", "step": 0, "num_steps": 6})
    seen = shown(run)
    assert "curves" in seen.ids and "pipeline" not in seen.ids and "epochs 0 of 6" in seen.text


def test_the_list_counts_epochs_and_tells_the_chosen_accuracy(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.update_manifest(metrics={"test/accuracy": 0.8, "best/test_accuracy": 0.6})
    (row,) = listing.rows(tmp_path)
    assert (row.progress, row.metric) == ("6/6 epochs", "best/test_accuracy 60 %")


def test_progress_tells_validation_and_test(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1, unit="epoch")
    values = {"val/accuracy": 0.7, "test/accuracy": 0.6, "best/val_accuracy": 0.75, "train/loss": 1.5}
    progress.step(1, {**values, "test/loss": 1.0, "time/step_s": 0.5}, 0.0)
    line = "epoch 1/1  val 0.7000  test 0.6000  best val 0.7500  train loss 1.5000  s 0.50"
    assert capsys.readouterr().err.strip() == line
