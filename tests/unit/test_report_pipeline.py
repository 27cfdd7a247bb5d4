"""The report of a pipeline's run: its stages, its timeline beside the prediction, and the trace."""

import json
import math
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report import gantt, timeline, write_report
from orchestrator.report.reading import read
from orchestrator.report.timeline import Span, Timeline
from orchestrator.rundir import RunDirectory
from strategies.pipeline import schedule, simulate, splits_backward, uniform

CONFIG = "name: pipe\nseed: 1\n"

Stages = list[list[list[Any]]]


class Reader(HTMLParser):
    """Collects what a browser would see: tags, ids, text, and elements that were left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [name for name, _ in attrs if name == "src" or (name == "href" and tag != "a")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes the wrong element"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def shown(run: RunDirectory) -> Reader:
    return Reader(write_report(run.path).read_text())


def spans(kind: str, num_stages: int = 2, microbatches: int = 4, chunks: int = 1, unit_s: float = 0.25) -> Stages:
    """A schedule with actions of `unit_s`, as ranks report it: a stage waits from its last end on."""
    weight = 1 if splits_backward(kind) else None
    simulation = simulate(schedule(kind, num_stages, microbatches, chunks), uniform(num_stages * chunks, 1, 1, weight))
    told = []
    for row in simulation.spans:
        free, stage = 0.0, []
        for begin, end, x in row:
            stage.append([x.kind, x.chunk, x.microbatch, free, float(begin) * unit_s, float(end) * unit_s])
            free = stage[-1][-1]
        told.append(stage)
    return told


def make(root: Path, measured: Any = None, *, predicted: Any = None, steps: int = 6, **told: Any) -> RunDirectory:
    """A run of two stages with two layers each."""
    run = RunDirectory.create(
        root, "pipe", CONFIG, {"seed": 1, "unit": "step", "step": steps, "num_steps": steps, "status": "FINISHED"}
    )
    stage = {"forward_s": 0.002, "backward_s": 0.004, "num_parameters": 12_345, "fixed_bytes": 2**20}
    stage |= {"activation_bytes": 2**11, "recompute": "never", "peak_live": 3}
    names = [["0 (Flatten)", "1 (Linear)"], ["2 (ReLU)", "3 (Linear)"]]
    partition = {"kind": "stages", "schedule": "1f1b", "layers": [2, 2], "num_microbatches": 4}
    partition |= {"stages": [{**stage, "layers": own} for own in names], **told}
    if predicted is not None:
        partition["predicted"] = predicted
    (run.path / "partition.json").write_text(json.dumps(partition))
    run.event("run_started")
    for step in range(1, steps + 1):
        values = {"train/loss": 1 / step, "time/step_s": step / 10, "comm/boundary_bytes": 1000.0}
        run.log(step, float(step), 0.0, {**values, "train/gradient_norm": 2.0 / step})
        if step % 3 == 0:
            run.log(step, float(step), 0.0, {"test/loss": 2 / step, "test/accuracy": 0.5, "time/evaluate_s": 0.1})
    if measured is not None:
        run.event("timeline", step=steps, stages=measured)
    return run


def trace(run: RunDirectory) -> dict[str, Any]:
    return json.loads((run.path / "timeline.trace.json").read_text())


def text_of(run: RunDirectory) -> str:
    return shown(run).text


# --------------------------------------------------------------------------------------------------- the page


def test_a_pipelines_page_speaks_of_steps_and_shows_its_stages_and_timelines(tmp_path: Path) -> None:
    run = make(tmp_path, spans("1f1b", unit_s=0.5), predicted=spans("1f1b"), predicted_bubble=0.2)
    seen = shown(run)
    assert seen.ids == ["curves", "pipeline", "bytes", "time", "numbers", "events", "config", "environment"]
    assert seen.open == []
    assert "round" not in seen.text
    for text in (
        "best test accuracy 50 % step 3", "final test accuracy 50 % step 6", "final test loss 0.3333 step 6",
        "steps 6 of 6", "median step time 350 ms 100 ms to 600 ms", "sent between stages 6 kB 1 kB a step",
        "Schedule 1f1b, 4 micro-batches.", "Step 6 as measured and as predicted",
        "Measured: 5 s, bubble 20 %", "Predicted: 2.5 s, bubble 20 %",
        "Largest deviation: B3 of stage 0 ends 2.5 s later than predicted.",
        "0 2 0 (Flatten) … 1 (Linear) 12.3 k 2 ms 4 ms 1 MiB 2 KiB never 3",
        "1 2 2 (ReLU) … 3 (Linear)", "Bytes by step", "Between stages 6 kB in all", "Time by step",
        "training 91 % 2.1 s", "evaluating 9 % 200 ms", "Gradient norm before clipping", "step time",
        "stage 0: F1, forward of micro-batch 1 from 500 ms to 1 s: 500 ms",
        "stage 1: F0, forward of micro-batch 0 from 500 ms to 1 s: 500 ms waited 500 ms before",
        "Timelines (1) and checkpoints (0) are in events.jsonl, not here.",
    ):  # fmt: skip
        assert text in seen.text, text
    assert "timeline" not in [event["kind"] for event in read(run).events]


def test_a_pipelines_page_loads_nothing_and_is_the_same_bytes_again(tmp_path: Path) -> None:
    run = make(tmp_path, spans("1f1b"), predicted=spans("1f1b"))
    seen = shown(run)
    assert seen.loads == []
    assert not {"script", "iframe", "link", "img"} & set(seen.tags)
    html = (run.path / "report.html").read_bytes()
    assert b"url(" not in html
    first = (run.path / "timeline.trace.json").read_bytes()
    assert write_report(run.path).read_bytes() == html
    assert (run.path / "timeline.trace.json").read_bytes() == first


def test_layer_names_and_all_else_in_partition_and_timeline_are_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    stage = {"layers": [evil, evil], "recompute": evil, "num_parameters": evil, "forward_s": evil, "peak_live": None}
    told = {"stages": [stage], "schedule": evil, "num_microbatches": evil, "layers": [evil], "predicted_bubble": evil}
    run = make(tmp_path, [[[evil, 0, 0, 0, 0, 1]]], predicted=spans("1f1b"), **told)
    seen = shown(run)
    assert not {"script", "img"} & set(seen.tags)
    assert f"{evil} … {evil}" in seen.text
    assert "The last timeline in events.jsonl is damaged: span 0 of stage 0 is not of a kind F, R, B or W" in seen.text


def test_without_a_timeline_the_prediction_stands_alone_and_no_trace_is_written(tmp_path: Path) -> None:
    run = make(tmp_path, predicted=spans("1f1b"))
    seen = shown(run)
    assert "No step has been measured yet." in seen.text
    assert "A step as predicted" in seen.text
    assert "Measured" not in seen.text
    assert "Largest deviation" not in seen.text
    assert not (run.path / "timeline.trace.json").exists()


def test_without_a_prediction_the_timeline_stands_alone(tmp_path: Path) -> None:
    run = make(tmp_path, spans("1f1b"))
    text = text_of(run)
    assert "Step 6 as measured " in text
    assert "Predicted" not in text
    assert {event["pid"] for event in trace(run)["traceEvents"]} == {1}


def test_a_run_that_failed_before_its_first_step_has_a_page(tmp_path: Path) -> None:
    failed = {"status": "FAILED", "error": {"type": "WorkerError", "message": "no memory", "place": "after step 0"}}
    run = RunDirectory.create(tmp_path, "x", CONFIG, {"unit": "step", "step": 0, "num_steps": 9, **failed})
    run.event("failed", error=failed["error"])
    seen = shown(run)
    assert seen.ids == ["error", "curves", "events", "config", "environment"]
    assert "steps 0 of 9" in seen.text
    assert "WorkerError at after step 0 no memory" in seen.text
    assert "round" not in seen.text
    (run.path / "partition.json").write_bytes(
        (make(tmp_path, predicted=spans("1f1b")).path / "partition.json").read_bytes()
    )
    assert "No step has been measured yet." in text_of(run)


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        (None, "it has no stages"),
        ([], "it has no stages"),
        ("FBW", "it has no stages"),
        ([[], []], "no stage has a span"),
        ([[], 7], "stage 1 is no list of spans"),
        ([[["F", 0, 0, 0.0, 1.0]]], "span 0 of stage 0 is not kind, chunk, micro-batch and three times"),
        ([[["F", 0, 0, 0.0, "x", 1.0]]], "span 0 of stage 0 is not kind"),
        ([[["F", 0, 0, 0.0, math.nan, 1.0]]], "the times of span 0 of stage 0 are not finite and in order"),
        ([[["F", 0, 0, 0, 2, 1]]], "the times of span 0 of stage 0 are not finite and in order"),
        ([[["F", 0, 0, 0, 10**400, 1]]], "span 0 of stage 0 is not kind"),
        ([[["F", -1, 0, 0, 0, 1]]], "span 0 of stage 0 is not of a kind"),
        ([[["F", 0, True, 0, 0, 1]]], "span 0 of stage 0 is not of a kind"),
        ([[[["F"], 0, 0, 0, 0, 1]]], "span 0 of stage 0 is not of a kind"),
        ([[["F", 0, 0, 0, 0, 1], 3]], "span 1 of stage 0 is not kind"),
    ],
)
def test_a_damaged_timeline_is_told_and_the_rest_of_the_page_is_there(
    tmp_path: Path, stages: Any, problem: str
) -> None:
    run = make(tmp_path, predicted=spans("1f1b"))
    run.event("timeline", step=6, stages=stages)
    text = text_of(run)
    assert f"The last timeline in events.jsonl is damaged: {problem}" in text
    assert "A step as predicted" in text
    assert not (run.path / "timeline.trace.json").exists()
    broken = make(tmp_path, spans("1f1b"), predicted=json.loads(json.dumps(stages)) or [])
    text = text_of(broken)
    assert f"The prediction in partition.json is damaged: {problem}" in text
    assert "Step 6 as measured" in text


@pytest.mark.parametrize(
    "told", [{"stages": 3}, {"stages": [3, None]}, {"stages": [{}], "layers": 3}, {"stages": [{"layers": "x"}]}]
)
def test_an_odd_partition_leaves_gaps_in_the_table_and_no_more(tmp_path: Path, told: dict[str, Any]) -> None:
    seen = shown(make(tmp_path, spans("1f1b"), **told))
    assert "Step 6 as measured" in seen.text
    assert seen.open == []


def test_the_timeline_of_steps_that_a_resume_trains_again_is_forgotten(tmp_path: Path) -> None:
    run = make(tmp_path, spans("1f1b"))
    run.event("timeline", step=9, stages=spans("1f1b"))
    run.truncate_metrics(7)
    facts = read(run)
    assert facts.timeline is not None
    assert facts.timeline["step"] == 6
    run.truncate_metrics(3)
    assert read(run).timeline is None


def test_a_federated_run_has_no_pipeline_section_whatever_its_partition(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.update_manifest(unit="round")
    seen = shown(run)
    assert "pipeline" not in seen.ids
    assert "rounds 6 of 6" in seen.text


# ------------------------------------------------------------------------------------------------- schedules


def test_interleaved_chunks_are_lettered_shaded_and_listed(tmp_path: Path) -> None:
    told = spans("interleaved", chunks=2)
    names = [["0 (A)", "1 (B)", "4 (E)"], ["2 (C)", "3 (D)", "5 (F)", "6 (G)"]]
    run = make(tmp_path, told, predicted=told, layers=[2, 2, 1, 2], stages=[{"layers": own} for own in names])
    seen = shown(run)
    assert "0 3 0 (A) … 1 (B) 4 (E)" in seen.text
    assert "1 4 2 (C) … 3 (D) 5 (F) … 6 (G)" in seen.text
    assert "stage 1: B2b, backward of micro-batch 2, chunk 1 from" in seen.text
    assert "chunk a, b, … of a stage" in seen.text
    html = (run.path / "report.html").read_text()
    assert html.count('class="bar s0 d1"') == 2 * 2 * 4
    assert html.count('class="bar s0"') == 2 * 2 * 4
    labels = {event["name"] for event in trace(run)["traceEvents"] if event["ph"] == "X"}
    assert labels == {f"{kind}{m}{chunk}" for kind in "FB" for m in range(4) for chunk in "ab"}


def test_a_folded_model_lists_the_layers_of_both_ends_on_the_first_stage(tmp_path: Path) -> None:
    told = spans("zero-bubble-v", chunks=2)
    names = [["0 (A)", "1 (B)", "6 (G)"], ["2 (C)", "3 (D)", "4 (E)", "5 (F)"]]
    given = {"schedule": "zero-bubble-v", "layers": [2, 1, 3, 1], "stages": [{"layers": own} for own in names]}
    seen = shown(make(tmp_path, told, predicted=told, **given))
    assert "0 3 0 (A) … 1 (B) 6 (G)" in seen.text
    assert "1 4 2 (C) 3 (D) … 5 (F)" in seen.text
    assert "stage 0: W2b, weight gradients of micro-batch 2, chunk 1 from" in seen.text


def test_weight_gradients_have_a_colour_and_a_name_of_their_own(tmp_path: Path) -> None:
    run = make(tmp_path, spans("zero-bubble"), predicted=spans("zero-bubble"))
    seen = shown(run)
    assert "forward backward, input gradients weight gradients" in seen.text
    assert "B1, input gradients of micro-batch 1 from" in seen.text
    assert "W1, weight gradients of micro-batch 1 from" in seen.text
    assert (run.path / "report.html").read_text().count('class="bar s2"') == 2 * 2 * 4
    assert {event.get("cat") for event in trace(run)["traceEvents"]} == {
        None,
        "forward",
        "backward",
        "weight gradients",
    }


def test_a_step_of_several_batches_is_held_against_as_many_predictions(tmp_path: Path) -> None:
    once = spans("1f1b")
    length_s = 2.5
    twice = [[*row, *([*span[:3], *(t + length_s for t in span[3:])] for span in row)] for row in once]
    text = text_of(make(tmp_path, twice, predicted=once))
    assert "Measured: 5 s, bubble 20 %" in text
    assert "Predicted, 2 batches end to end: 5 s, bubble 20 %" in text
    assert "ends 0 s later than predicted" in text


def test_stages_that_take_turns_are_told_apart_from_stages_that_wait(tmp_path: Path) -> None:
    turns = [[["F", 0, m, 2 * m + s, 2 * m + s, 2 * m + s + 1] for m in range(3)] for s in range(2)]
    taken = "No two stages computed at the same time"
    assert taken in text_of(make(tmp_path, turns, predicted=spans("1f1b")))
    assert taken not in text_of(make(tmp_path, spans("1f1b"), predicted=spans("1f1b")))
    alone = spans("gpipe", microbatches=1)
    assert taken not in text_of(make(tmp_path, alone, predicted=alone))


def test_recomputation_is_an_action_of_its_own(tmp_path: Path) -> None:
    stages = [[["F", 0, 0, 0.0, 0.0, 1.0], ["R", 0, 0, 1.0, 1.0, 2.0], ["B", 0, 0, 2.0, 2.5, 4.0]]]
    assert "recomputation" in text_of(make(tmp_path, stages))
    assert "recomputation" not in text_of(make(tmp_path, [[["F", 0, 0, 0.0, 0.0, 1.0]]]))


# ------------------------------------------------------------------------------------------------ arithmetic


def test_time_bubble_and_deviation_are_what_the_spans_say() -> None:
    done = timeline.measured(
        {
            "step": 3,
            "stages": [[["F", 0, 0, 10.0, 10.0, 11.0], ["B", 0, 0, 11.0, 13.0, 14.0]], [["F", 0, 0, 10.0, 11.0, 12.0]]],
        }
    )
    assert done.begun_s == 10.0
    assert done.length_s == 4.0
    assert done.computing_s == 3.0
    assert done.bubble == 1 - 3 / 8
    assert done.num_chunks == 1
    paper = timeline.predicted(
        {"predicted": [[["F", 0, 0, 0, 0, 2], ["B", 0, 0, 2, 3, 4.5]], [["F", 0, 0, 2, 2, 2.25], ["W", 0, 0, 3, 3, 9]]]}
    )
    assert timeline.deviation(done, paper) == (0, Span("F", 0, 0, 0.0, 0.0, 1.0), -1.0)
    assert timeline.deviation(done, timeline.predicted({"predicted": [[["F", 0, 7, 0, 0, 2]]]})) is None


def test_a_predicted_bubble_that_is_no_share_is_computed_instead() -> None:
    told = {"predicted": spans("1f1b")}
    assert timeline.predicted({**told, "predicted_bubble": 0.3}).bubble == 0.3
    for odd in (None, "x", math.nan, -1, 7):
        assert timeline.predicted({**told, "predicted_bubble": odd}).bubble == pytest.approx(0.2)


# --------------------------------------------------------------------------------------------------- the trace


def test_the_trace_holds_every_action_in_microseconds_under_named_stages(tmp_path: Path) -> None:
    run = make(tmp_path, spans("1f1b", unit_s=0.5), predicted=spans("1f1b"))
    write_report(run.path)
    told = trace(run)
    assert told["displayTimeUnit"] == "ms"
    assert told["otherData"]["step"] == 6
    names = {(e["name"], e["pid"], e["tid"]): e["args"] for e in told["traceEvents"] if e["ph"] == "M"}
    assert names["process_name", 1, 0] == {"name": "measured, step 6"}
    assert names["process_name", 2, 0] == {"name": "predicted"}
    assert names["thread_name", 2, 1] == {"name": "stage 1"}
    done = [e for e in told["traceEvents"] if e["ph"] == "X"]
    assert len(done) == 2 * 2 * 8
    first = next(e for e in done if e["pid"] == 1 and e["tid"] == 1)
    assert first == {
        "name": "F0", "cat": "forward", "ph": "X", "ts": 500_000.0, "dur": 500_000.0, "pid": 1, "tid": 1,
        "args": {"microbatch": 0, "chunk": 0, "wait": 500_000.0},
    }  # fmt: skip
    for pid in (1, 2):  # the actions of a stage follow each other, as nested ones would be drawn below
        for tid in (0, 1):
            times = [(e["ts"], e["ts"] + e["dur"]) for e in done if (e["pid"], e["tid"]) == (pid, tid)]
            assert all(end <= begin for (_, end), (begin, _) in pairwise(times))


# ------------------------------------------------------------------------------------------------- the picture


def picture(num_stages: int, microbatches: int) -> str:
    told = timeline.measured({"step": 1, "stages": spans("1f1b", num_stages, microbatches)})
    return str(gantt.draw([("Measured", told), ("Predicted", told)]))


def test_numbers_are_drawn_where_they_fit_and_more_of_them_on_a_wide_page() -> None:
    few = picture(2, 4)
    assert few.count('class="number"') == 2 * 16
    more = picture(4, 16)
    assert more.count('class="number roomy"') == 2 * 4 * 2 * 16
    assert 'class="number"' not in more
    assert 'class="number' not in picture(8, 64)


@pytest.mark.parametrize(("num_stages", "microbatches", "hinted"), [(8, 64, True), (8, 128, False), (16, 256, False)])
def test_many_actions_stay_small(num_stages: int, microbatches: int, hinted: bool) -> None:
    drawn = picture(num_stages, microbatches)
    assert ("<title>" in drawn) is hinted
    assert len(drawn) < 400_000
    assert Reader(drawn).open == []


def test_too_many_actions_are_drawn_as_shares_of_time_that_fill_what_was_computed() -> None:
    busy = Timeline([[Span("FB"[i % 2], 0, i // 2, float(i), float(i), i + 1.0) for i in range(4000)], []], 1)
    drawn = str(gantt.draw([("Measured", busy)]))
    assert "the height of a colour is its share of each 10 s" in drawn
    assert '<path class="s0" d="M0 10h400v10h-400z"/>' in drawn
    assert '<path class="s1" d="M0 0h400v10h-400z"/>' in drawn


def test_a_timeline_without_duration_has_a_picture() -> None:
    told = timeline.measured({"step": 1, "stages": [[["F", 0, 0, 1, 1, 1]]]})
    assert told.bubble == 0.0
    assert "<svg" in gantt.draw([("Measured", told)])
    assert gantt.draw([]) == '<p class="empty">no timeline yet</p>'
