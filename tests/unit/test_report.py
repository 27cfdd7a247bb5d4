"""A report is one file, made from disk alone, that shows what was recorded and runs nothing."""

import json
import math
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator.errors import OrchestratorError, ResumeError
from orchestrator.report import charts, page, pictures, scales, write_report
from orchestrator.report.reading import busy_s, read
from orchestrator.report.sweep_page import ranked
from orchestrator.rundir import RunDirectory

CONFIG = "name: demo\nseed: 7\n# why\nstrategy:\n  client: {epochs: 1}\n  lr: 1.0e-3\n  on: true\n- 'a b': null\n"


class Reader(HTMLParser):
    """Collects what a browser would see: tags, ids, text, and addresses it would load."""

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
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "data", "action", "xlink:href") or (name == "href" and tag != "a"):
                self.loads.append(value or "")
            assert not name.startswith("on"), f"<{tag} {name}> would run code"
        if tag not in ("meta", "br", "path", "rect", "circle", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "rect", "circle"):
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes the wrong element"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def make(root: Path, *, rounds: int = 6, clients: int = 10, name: str = "demo", **manifest: object) -> RunDirectory:
    """A run of `rounds` rounds over `clients` clients, three a round, with a partition of two classes."""
    run = RunDirectory.create(root, name, CONFIG, {"seed": 7, "num_steps": rounds, "step": rounds, **manifest})
    told = [{"name": f"c{i}", "counts": [i + 1, 10 - i]} for i in range(min(clients, 10))]
    partition = {"kind": "dirichlet", "num_clients": clients, "sizes": {"min": 11, "median": 11, "max": 11}}
    (run.path / "partition.json").write_text(json.dumps({**partition, "clients": told, "class_names": ["cat", "dog"]}))
    run.event("run_started")
    run.log(0, 0.0, 0.0, {"test/accuracy": 0.1, "test/loss": 2.0})
    for step in range(1, rounds + 1):
        run.event("round", step=step, clients=[step % clients, (3 * step) % clients], virtual_s=float(step**2))
        values = {"test/accuracy": 0.5 + step / 20, "test/loss": 1 / step, "train/loss": 0.9 / step}
        traffic = {"comm/uplink_bytes": 1500.0, "comm/downlink_bytes": 3e6, "train/num_examples": 30}
        times = {"time/compute_s": 2.0, "time/wire_s": 0.5, "time/wait_s": 1.0, "time/round_s": 3.5}
        run.log(step, step * 3.5, float(step**2), {**values, **traffic, **times})
    run.flush_metrics()
    return run


def shown(run: RunDirectory) -> Reader:
    return Reader(write_report(run.path).read_text())


# --------------------------------------------------------------------------------------------------- the page


def test_a_finished_run_shows_every_section_and_its_numbers(tmp_path: Path) -> None:
    seen = shown(make(tmp_path, status="FINISHED", versions={"torch": "2.13.0"}, machine={"memory_bytes": 2**34}))
    sections = ["curves", "clients", "bytes", "time", "partition", "numbers", "events", "config", "environment"]
    assert seen.ids == sections
    assert seen.open == []
    for text in (
        "FINISHED", "seed 7", "best test accuracy 80 % round 6", "final test loss 0.1667", "rounds 6 of 6",
        "sent in all 18 MB 9 kB up, 18 MB down", "Test accuracy over virtual time", "Test accuracy over bytes",
        "compute 57 % 12 s", "waiting 29 % 6 s", "dirichlet over 10 clients", "cat dog", "torch 2.13.0", "16 GiB",
    ):  # fmt: skip
        assert text in seen.text
    assert seen.tags.count("svg") == 15


def test_a_report_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    run = make(tmp_path)
    seen = shown(run)
    assert seen.loads == []
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & set(seen.tags)
    html = (run.path / "report.html").read_text()
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    run = make(tmp_path, status="FINISHED")
    first = write_report(run.path).read_bytes()
    shutil.copytree(run.path, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    assert write_report(tmp_path / "copy").read_bytes() == first


def test_names_and_errors_are_text_and_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    error = {"type": evil, "message": evil, "hint": evil, "traceback": evil}
    told = {"command": evil, "versions": {evil: evil}, "git": {"commit": evil}, "machine": {evil: evil}}
    run = make(tmp_path, rounds=2, id=evil, status=evil, seed=evil, mlflow={"uri": evil}, error=error, **told)
    run.update_manifest(name=evil)
    run.event("worker_lost", reason=evil, **{"<b>": evil})
    run.event(evil)
    run.log(3, 0, 0, {f"test/{evil}": 1.0})
    (run.path / "config.resolved.yaml").write_text(f"{evil}\n'{evil}': {evil}\nname: {evil}\n# {evil}\n- {evil}\n")
    partition = json.loads((run.path / "partition.json").read_text())
    partition |= {"kind": evil, "class_names": [evil, evil]}
    partition["clients"][0]["name"] = evil
    (run.path / "partition.json").write_text(json.dumps(partition))
    seen = shown(run)
    assert not {"script", "img"} & set(seen.tags)
    assert "script" not in seen.tags
    assert evil in seen.text


def test_a_run_that_just_started_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "new", CONFIG, {"seed": 1})
    with run.lock():
        seen = shown(run)
    assert "RUNNING" in seen.text
    assert "No metric has been recorded." in seen.text
    assert seen.ids == ["curves", "events", "config", "environment"]


def test_a_run_whose_process_died_says_how_to_continue(tmp_path: Path) -> None:
    run = make(tmp_path, status="RUNNING")
    seen = shown(run)
    assert "INTERRUPTED?" in seen.text
    assert f"orchestrator resume {run.path}" in seen.text


def test_a_failed_run_shows_message_place_and_traceback(tmp_path: Path) -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 3, in f\nValueError: bad <shape>'
    parts = {"type": "WorkerError", "message": "ValueError: bad <shape>", "place": "round 1, client 3"}
    run = RunDirectory.create(
        tmp_path, "x", CONFIG, {"status": "FAILED", "error": {**parts, "worker": "worker 1", "traceback": trace}}
    )
    seen = shown(run)
    assert "WorkerError at round 1, client 3, worker 1 ValueError: bad <shape> Traceback" in seen.text
    assert 'File "a.py", line 3, in f' in seen.text


def test_a_traceback_inside_the_message_is_set_apart(tmp_path: Path) -> None:
    trace = "Traceback (most recent call last):\n  File x\nKeyError: 'k'"
    for message, head in ((trace, "KeyError: 'k'"), (f"lost (round 2)\n{trace}\n  a hint", "lost (round 2)")):
        failed = page.failure({"error": {"type": "KeyError", "message": message}})
        assert failed is not None
        assert failed.message == head
        assert failed.traceback.startswith(trace)
    assert page.failure({"error": {}}) is None
    assert page.failure({}) is None


def test_values_that_are_not_finite_are_drawn_as_gaps_and_told_in_the_table(tmp_path: Path) -> None:
    run = make(tmp_path, rounds=3)
    run.log(4, 0, 16, {"test/accuracy": math.nan, "test/loss": math.inf, "time/compute_s": math.nan})
    run.log(5, 0, 25, {"test/accuracy": 0.6, "test/loss": -math.inf, "comm/uplink_bytes": math.nan})
    seen = shown(run)
    assert "final test accuracy 60 %" in seen.text
    html = (run.path / "report.html").read_text()
    assert "∞" in html
    assert not [word for word in ("nan", "inf") if f'"{word}' in html.lower() or f" {word}" in html.lower()]


def test_a_password_in_the_tracking_address_is_left_out() -> None:
    rows = page.environment_rows({"mlflow": {"uri": "https://user:secret@host:5000/x", "run_id": None}})
    assert rows == [("MLflow uri", "https://host:5000/x")]


# ------------------------------------------------------------------------------------------------- the facts


def test_rounds_trained_again_after_a_resume_count_once(tmp_path: Path) -> None:
    run = make(tmp_path, rounds=6)
    run.truncate_metrics(3)
    run.event("resumed", from_step=3)
    run.event("round", step=4, clients=[9])
    facts = read(run)
    assert list(facts.rounds) == [1, 2, 3, 4]
    assert facts.rounds[4] == [9]
    assert facts.series["test/loss"].step == [0, 1, 2, 3]


def test_duration_leaves_out_the_time_between_a_stop_and_its_resume() -> None:
    times = [(0.0, "run_started"), (10.0, "round"), (5000.0, "resumed"), (5004.0, "run_finished")]
    assert busy_s(times) == 14.0
    assert busy_s([]) == 0.0


def test_many_clients_and_rounds_stay_small_and_say_what_is_left_out(tmp_path: Path) -> None:
    run = make(tmp_path, rounds=900, clients=5000)
    seen = shown(run)
    assert "With 5,000 clients, the picture of who took part when is left out." in seen.text
    assert "a bar is the mean of 9 rounds" in seen.text
    assert (run.path / "report.html").stat().st_size < 300_000


@pytest.mark.parametrize("name", ["metrics.parquet", "partition.json", "manifest.json"])
def test_a_damaged_file_is_an_error_that_names_it_and_keeps_the_old_report(tmp_path: Path, name: str) -> None:
    run = make(tmp_path)
    old = write_report(run.path).read_bytes()
    (run.path / name).write_bytes(b"{")
    with pytest.raises(ResumeError, match=name):
        write_report(run.path)
    assert (run.path / "report.html").read_bytes() == old


def test_a_report_that_cannot_be_written_is_an_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    run = make(tmp_path)
    (run.path / "report.html").mkdir()
    with pytest.raises(OrchestratorError, match=r"cannot write .*report\.html"):
        write_report(run.path)
    assert not list(run.path.glob(".*.tmp"))


def test_a_folder_that_is_no_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="not a run directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- the sweep


def sweep(root: Path, mode: str = "max", **values: float) -> RunDirectory:
    space = {"lr": {"loguniform": [0.001, 1]}, "model.name": {"choice": ["cnn", "mlp"]}}
    search = {"metric": "test/accuracy", "mode": mode, "space": space}
    run = RunDirectory.create(root, "search", CONFIG, {"kind": "sweep", "status": "FINISHED", "search": search})
    for number, (name, value) in enumerate(values.items()):
        params = {"lr": 10.0 ** -(number % 3), "model.name": ("cnn", "mlp")[number % 2]}
        path = run.path / "trials" / name
        trial = RunDirectory.create_at(
            path, name, f"name: {name}\n", {"status": "FINISHED", "trial": {"number": number, "params": params}}
        )
        trial.log(1, 0, 0, {"test/accuracy": value / 2})
        trial.log(2, 0, 0, {"test/accuracy": value})
    return run


def test_a_sweep_ranks_its_trials_and_shows_the_best_configuration(tmp_path: Path) -> None:
    run = sweep(tmp_path, a=0.4, b=0.8, c=math.nan, d=0.6)
    write_report(run.path / "trials" / "d")
    seen = shown(run)
    assert seen.ids == ["trials", "curves", "parameters", "best", "events", "config", "environment"]
    assert "best test/accuracy 80 % trial 1, round 2" in seen.text
    assert "Best configuration: trial 1 name : b" in seen.text
    assert 'href="trials/d/report.html"' in (run.path / "report.html").read_text()
    assert seen.tags.count("svg") == 3


def test_a_sweep_that_minimises_ranks_the_least_first(tmp_path: Path) -> None:
    assert "trial 0, round 2" in shown(sweep(tmp_path, "min", a=0.4, b=0.8)).text


def test_trials_without_a_value_come_last(tmp_path: Path) -> None:
    from orchestrator.report.sweep_page import Trial

    facts = read(RunDirectory.create(tmp_path, "x", "", {}))
    trials = [Trial(i, {}, value, 1, facts) for i, value in enumerate([None, 0.0, -1.0, 2.0])]
    assert [trial.number for trial in ranked(trials, "max")] == [3, 1, 2, 0]
    assert [trial.number for trial in ranked(trials, "min")] == [2, 1, 3, 0]


def test_a_sweep_without_trials_has_a_page(tmp_path: Path) -> None:
    seen = shown(sweep(tmp_path))
    assert "No trial has started." in seen.text


def test_a_sweep_whose_trials_all_failed_has_a_page(tmp_path: Path) -> None:
    run = sweep(tmp_path, a=math.nan)
    assert "none" in shown(run).text


# --------------------------------------------------------------------------------------- numbers and pictures


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (scales.plain, 1234.5, "1,234.5"), (scales.plain, 0.00012, "1.2e-4"), (scales.plain, 0.0, "0"),
        (scales.plain, -2.5, "\N{MINUS SIGN}2.5"), (scales.plain, 3e9, "3e9"), (scales.plain, math.nan, "NaN"),
        (scales.percent, 0.8731, "87.3 %"), (scales.percent, 1.0, "100 %"), (scales.percent, math.nan, "NaN"),
        (scales.size, 0, "0 B"), (scales.size, 999, "999 B"), (scales.size, 1500, "1.5 kB"),
        (scales.size, 999_999, "1 MB"), (scales.memory, 1.5 * 2**30, "1.5 GiB"), (scales.size, 1e18, "1000 PB"),
        (scales.duration, 0.0123, "12.3 ms"), (scales.duration, 0, "0 s"), (scales.duration, 59.996, "60 s"),
        (scales.duration, 75, "1 min 15 s"), (scales.duration, 3600, "1 h"), (scales.duration, 93784, "1 d 2 h"),
        (scales.count, 9999, "9,999"), (scales.count, 1_234_567, "1.23 M"), (scales.count, 999_960, "1 M"),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(show: scales.Format, value: float, text: str) -> None:
    assert show(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.1, 0.9), (-3, 7), (5, 5), (0, 0), (1e-9, 3e-9), (0, 1e12), (2, 2.001)]
)
def test_marks_cover_the_values_in_even_steps(low: float, high: float) -> None:
    marks = scales.ticks(low, high)
    assert marks[0] <= low
    assert marks[-1] >= high
    steps = [b - a for a, b in pairwise(marks)]
    assert 2 <= len(marks) <= 9
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_marks_of_time_are_whole_minutes_hours_and_days() -> None:
    assert scales.time_ticks(0, 170, 4) == [0, 60, 120, 180]
    assert scales.time_ticks(0, 5 * 86400, 4) == [0, 172800, 345600, 518400]


def test_a_curve_over_many_decades_is_drawn_on_a_logarithmic_axis() -> None:
    drawn = charts.lines([charts.Line("loss", [1, 2], [1e-3, 1e4])], charts.Axis("round"), charts.Axis(""))
    assert ">0.001<" in drawn
    assert ">100,000<" in drawn


def test_a_curve_with_nothing_finite_says_so() -> None:
    drawn = charts.lines([charts.Line("x", [1], [math.nan])], charts.Axis("round"), charts.Axis(""))
    assert drawn == '<p class="empty">no finite value yet</p>'


def test_participation_merges_neighbours_and_groups_many_rounds() -> None:
    drawn = pictures.participation({1: [0, 1, 2], 2: [4]}, 5)
    assert "M0 0h1v3h-1z" in drawn
    assert "M1 4h1v1h-1z" in drawn
    assert 'viewBox="0 0 2 5"' in drawn
    grouped = pictures.participation({step: [0] for step in range(1, 241)}, 1)
    assert 'viewBox="0 0 120 1"' in grouped
    assert "each column 2 rounds" in grouped


def test_yaml_is_marked_and_its_text_unchanged() -> None:
    marked = page.highlight(CONFIG)
    assert '<b>seed</b>:<span class="n"> 7</span>' in marked
    assert '<span class="c"># why</span>' in marked
    assert marked.striptags() == " ".join(CONFIG.split())


def test_a_run_whose_rounds_name_no_client_still_has_a_page(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "x", CONFIG, {"status": "FINISHED"})
    run.event("round", step=1, clients=[])
    assert "clients" not in shown(run).ids
