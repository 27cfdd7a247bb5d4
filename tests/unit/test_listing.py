"""The list of runs tells at a glance what became of each, also of those that died."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import listing
from orchestrator.rundir import RunDirectory

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def run(root: Path, name: str, *, hours: float = 1, took_s: float = 90, **fields: object) -> RunDirectory:
    created = NOW - timedelta(hours=hours)
    made = RunDirectory.create_at(root / name, name, "", {"created": created.isoformat(), **fields})
    text = made.manifest | {"updated": (created + timedelta(seconds=took_s)).isoformat()}
    (made.path / "manifest.json").write_text(json.dumps(text))
    return made


def test_rows_tell_status_progress_metric_age_and_duration(tmp_path: Path) -> None:
    metrics = {"train/loss": 1.5, "test/accuracy": 0.871}
    run(tmp_path, "done", status="FINISHED", step=50, num_steps=50, metrics=metrics)
    run(tmp_path, "failed", hours=0.5, status="FAILED", step=0, num_steps=50)
    done, failed = listing.rows(tmp_path, NOW)
    assert done == ("done", "run", "FINISHED", "50/50", "test/accuracy 87.1 %", 3600.0, 90.0, tmp_path / "done")
    assert (failed.status, failed.progress, failed.metric) == ("FAILED", "0/50", "")


def test_a_run_that_says_running_is_believed_only_while_its_lock_is_held(tmp_path: Path) -> None:
    alive = run(tmp_path, "alive", status="RUNNING")
    run(tmp_path, "dead", status="RUNNING", hours=0.1)
    with alive.lock():
        assert [row.status for row in listing.rows(tmp_path, NOW)] == ["RUNNING", "INTERRUPTED?"]
        text = listing.table(tmp_path, NOW).plain
    assert f"orchestrator resume {tmp_path / 'dead'}" in text


def test_a_sweep_counts_its_trials(tmp_path: Path) -> None:
    sweep = run(tmp_path, "sweep", status="FINISHED", kind="sweep")
    run(sweep.path / "trials", "000", status="FINISHED")
    run(sweep.path / "trials", "001", status="FAILED")
    run(sweep.path / "trials", "002", status="RUNNING")
    (row,) = listing.rows(tmp_path, NOW)
    assert (row.kind, row.progress) == ("sweep", "2/3 trials")


def test_pauses_of_a_resumed_run_do_not_count(tmp_path: Path) -> None:
    resumed = run(tmp_path, "resumed", status="FINISHED", took_s=9000, resumed=[{"from_step": 3}])
    lines = [{"time": at, "kind": kind} for at, kind in ((0, "run_started"), (5, "x"), (8000, "resumed"), (8007, "y"))]
    (resumed.path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert listing.rows(tmp_path, NOW)[0].duration_s == 12.0


def test_the_table_has_one_line_a_run_however_narrow_the_terminal(tmp_path: Path) -> None:
    for index in range(3):
        run(tmp_path, f"{'long-name-' * 9}{index}", hours=index, status="FINISHED", step=1, num_steps=2)
    text = listing.table(tmp_path, NOW).plain
    head, *lines = text.split("\n")
    assert head.split() == ["STATUS", "ROUNDS", "METRIC", "AGE", "DURATION", "RUN"]
    assert len(lines) == 3
    assert lines[0].split()[-1] == str(tmp_path / ("long-name-" * 9 + "2"))
    assert "2 h ago" in lines[0]


def test_paths_below_the_current_folder_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "runs", "a", status="FINISHED")
    monkeypatch.chdir(tmp_path)
    assert listing.table("runs", NOW).plain.endswith("  runs/a")


def test_an_empty_or_missing_folder_says_how_to_start(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        assert "no runs in" in listing.table(root, NOW).plain


def test_junk_is_passed_over_and_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "mlflow.db").write_text("")
    run(tmp_path, "good", status="FINISHED")
    (run(tmp_path, "bad", status="FINISHED").path / "manifest.json").write_text('{"format":')
    assert [(row.id, row.status) for row in listing.rows(tmp_path, NOW)] == [("good", "FINISHED"), ("bad", "DAMAGED")]
    text = listing.table(tmp_path, NOW).plain
    assert "manifest.json is damaged" in text
    assert "put manifest.json back" in text


def test_odd_manifests_do_not_stop_the_list(tmp_path: Path) -> None:
    odd = run(tmp_path, "odd", status="FINISHED")
    (odd.path / "manifest.json").write_text(json.dumps({"format": 1, "created": 3, "metrics": {"a/b": "NaN"}}))
    (row,) = listing.rows(tmp_path, NOW)
    assert (row.status, row.metric, row.progress) == ("UNKNOWN", "a/b NaN", "0")
    assert "UNKNOWN" in listing.table(tmp_path, NOW).plain


def test_scripts_get_json(tmp_path: Path) -> None:
    run(tmp_path, "done", status="FINISHED", step=50, num_steps=50, metrics={"test/accuracy": 0.871})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    done, broken = json.loads(listing.to_json(tmp_path))
    assert (done["id"], done["status"], done["duration_s"]) == ("done", "FINISHED", 90.0)
    assert done["metrics"] == {"test/accuracy": 0.871}
    assert done["path"] == str(tmp_path / "done")
    assert (broken["status"], broken["age_s"]) == ("DAMAGED", None)
