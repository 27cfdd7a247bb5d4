"""A run directory keeps what it was told, through crashes, full disks and second writers."""

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.environment import environment, git
from orchestrator.errors import ConfigError, OrchestratorError, ResumeError
from orchestrator.rundir import COLUMNS, RunDirectory, find_runs


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "runs", "digits", "name: digits\n", {"seed": 7, "num_steps": 10})


def rows(run: RunDirectory) -> list[tuple]:
    return [tuple(row.values()) for row in run.metrics().to_pylist()]


# ------------------------------------------------------------------------------------------------------ making


def test_a_new_run_directory_holds_config_and_manifest_and_nothing_hidden(run: RunDirectory) -> None:
    names = {path.name for path in run.path.iterdir()}
    assert names == {"config.resolved.yaml", "manifest.json", "events.jsonl", "checkpoints", "logs"}
    assert (run.path / "config.resolved.yaml").read_text() == "name: digits\n"
    manifest = run.manifest
    assert (manifest["format"], manifest["kind"], manifest["status"], manifest["seed"]) == (1, "run", "RUNNING", 7)
    assert manifest["id"] == run.path.name
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]


def test_many_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    paths = {RunDirectory.create(tmp_path, "same", "", {}).path for _ in range(20)}
    assert len(paths) == 20


def test_an_unwritable_root_is_a_config_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"storage\.root.*Not a directory"):
        RunDirectory.create(tmp_path / "file", "x", "", {})
    with pytest.raises(ConfigError, match=r"cannot make a run directory here"):
        RunDirectory.create(Path("/proc/none"), "x", "", {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_exact_path_that_is_taken_is_refused_and_kept(tmp_path: Path) -> None:
    first = RunDirectory.create_at(tmp_path / "trials" / "000", "t", "first", {"kind": "run", "parent": "sweep"})
    with pytest.raises(ConfigError, match="not empty"):
        RunDirectory.create_at(first.path, "t", "second", {})
    assert (first.path / "config.resolved.yaml").read_text() == "first"
    assert first.manifest["parent"] == "sweep"
    assert [path.name for path in first.path.parent.iterdir()] == ["000"]


def test_a_manifest_that_cannot_be_json_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot be stored"):
        RunDirectory.create(tmp_path, "x", "", {"bad": object()})
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------- opening


def test_opening_a_folder_that_is_no_run_says_what_to_type(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        with pytest.raises(ResumeError, match="not a run directory") as caught:
            RunDirectory.open(path)
        assert "orchestrator list" in caught.value.hint


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": 1', "\x00\x00", "null"])
def test_a_damaged_manifest_is_a_resume_error(run: RunDirectory, content: str) -> None:
    (run.path / "manifest.json").write_text(content)
    with pytest.raises(ResumeError, match=r"manifest\.json is damaged") as caught:
        RunDirectory.open(run.path)
    assert "orchestrator run" in caught.value.hint
    assert find_runs(run.path.parent) == []


def test_a_format_of_the_future_is_refused(run: RunDirectory) -> None:
    run.update_manifest(format=99)
    with pytest.raises(ResumeError, match="format 99, this version reads 1"):
        RunDirectory.open(run.path)


def test_find_runs_passes_over_junk_and_sorts_by_age(tmp_path: Path) -> None:
    newer = RunDirectory.create_at(tmp_path / "a", "a", "", {"created": "2026-02-01T00:00:00+00:00"})
    older = RunDirectory.create_at(tmp_path / "b", "b", "", {"created": "2026-01-01T00:00:00+00:00"})
    (tmp_path / "junk").mkdir()
    (tmp_path / "mlflow.db").write_text("x")
    (tmp_path / ".half.tmp").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [run.path for run in find_runs(tmp_path)] == [older.path, newer.path]
    assert find_runs(tmp_path / "missing") == []


# ---------------------------------------------------------------------------------------------------- manifest


def test_manifest_updates_are_seen_by_another_reader_and_never_half_written(run: RunDirectory) -> None:
    other = RunDirectory.open(run.path)
    run.update_manifest(status="FINISHED", step=10, metrics={"test/loss": math.nan, "a/b": -math.inf})
    assert other.manifest["status"] == "FINISHED"
    assert math.isnan(other.manifest["metrics"]["test/loss"])
    assert other.manifest["metrics"]["a/b"] == -math.inf
    assert "NaN" in json.loads((run.path / "manifest.json").read_text(), parse_constant=pytest.fail)["metrics"].values()
    assert not list(run.path.glob(".*.tmp"))


def test_changing_the_returned_manifest_changes_nothing(run: RunDirectory) -> None:
    run.manifest["status"] = "KILLED"
    assert run.manifest["status"] == "RUNNING"


# ------------------------------------------------------------------------------------------------------ events


def test_events_come_back_in_order_with_odd_values(run: RunDirectory) -> None:
    run.event("round", step=1, clients=[3, 1], virtual_s=math.inf, path=Path("x/y"))
    run.event("failed", error={"message": "line\nbreak \u2028 é \ud800"})
    first, second = run.events()
    assert (first["kind"], first["clients"], first["virtual_s"], first["path"]) == ("round", [3, 1], "Infinity", "x/y")
    assert second["error"]["message"] == "line\nbreak \u2028 é \ud800"
    assert first["time"] <= second["time"]


def test_numpy_values_are_stored_as_plain_numbers(run: RunDirectory) -> None:
    import numpy as np

    run.event("round", step=np.int64(3), clients=np.arange(3), loss=np.float32("nan"))
    (event,) = run.events()
    assert (event["step"], event["clients"], event["loss"]) == (3, [0, 1, 2], "NaN")


def test_a_torn_last_line_is_passed_over_and_closed_by_the_next_event(run: RunDirectory) -> None:
    run.event("one")
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": 1.0, "kind": "tw')
    assert [event["kind"] for event in run.events()] == ["one"]
    RunDirectory.open(run.path).event("three")
    assert [event["kind"] for event in run.events()] == ["one", "three"]


def test_a_full_disk_is_an_error_that_says_what_to_do(run: RunDirectory) -> None:
    (run.path / "events.jsonl").unlink()
    (run.path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(OrchestratorError, match=r"cannot write .*events\.jsonl: No space left") as caught:
        run.event("one")
    assert "orchestrator resume" in caught.value.hint


def test_a_write_cut_short_by_the_disk_loses_only_that_event_and_no_file(run: RunDirectory) -> None:
    """The limit on the size of a file makes the system accept a part of a write and refuse the rest."""
    run.log(1, 1.0, 1.0, {"test/loss": 0.5})
    before = (run.path / "manifest.json").read_bytes()
    size = (run.path / "events.jsonl").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
    try:
        with pytest.raises(OrchestratorError, match="File too large"):
            run.event("long", text="x" * 100)
        with pytest.raises(OrchestratorError, match=r"manifest\.json: File too large"):
            run.update_manifest(status="FINISHED")
        with pytest.raises(OrchestratorError, match=r"metrics\.parquet: File too large"):
            run.flush_metrics()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run.path / "events.jsonl").stat().st_size == size + 20
    assert (run.path / "manifest.json").read_bytes() == before
    assert not (run.path / "metrics.parquet").exists()
    run.event("after")
    assert [event["kind"] for event in run.events()] == ["metrics", "after"]
    assert [path.name for path in run.path.glob(".*")] == []


# ----------------------------------------------------------------------------------------------------- metrics


def test_metrics_are_whole_before_and_after_a_flush_and_after_a_kill(run: RunDirectory) -> None:
    run.log(0, 0.5, 0.0, {"test/accuracy": 0.1})
    run.flush_metrics()
    run.log(1, 1.5, 2.0, {"test/accuracy": 0.2, "comm/uplink_bytes": 12})
    again = RunDirectory.open(run.path)
    expected = [
        (0, 0.5, 0.0, "test", "accuracy", 0.1),
        (1, 1.5, 2.0, "test", "accuracy", 0.2),
        (1, 1.5, 2.0, "comm", "uplink_bytes", 12.0),
    ]
    assert rows(run) == rows(again) == expected
    assert run.metrics().schema.names == list(COLUMNS)
    again.flush_metrics()
    assert rows(again) == expected


def test_the_parquet_file_alone_has_the_promised_columns_and_types(run: RunDirectory) -> None:
    import pyarrow.parquet as pq

    run.log(3, 1.0, 2.0, {"time/round_s": 4})
    run.flush_metrics()
    schema = pq.read_schema(run.path / "metrics.parquet")
    assert [str(field.type) for field in schema] == ["int64", "double", "double", "string", "string", "double"]
    assert schema.names == ["step", "wall_s", "virtual_s", "scope", "name", "value"]


def test_an_empty_run_has_an_empty_table_of_the_same_columns(run: RunDirectory) -> None:
    assert run.metrics().num_rows == 0
    run.flush_metrics()
    assert run.metrics().schema.names == list(COLUMNS)


def test_nan_and_infinities_survive_events_and_parquet(run: RunDirectory) -> None:
    run.log(1, 0.0, 0.0, {"a/nan": math.nan, "a/inf": math.inf, "a/minus": -math.inf})
    before = rows(run)
    run.flush_metrics()
    for values in (before, rows(run)):
        assert math.isnan(values[0][-1])
        assert [row[-1] for row in values[1:]] == [math.inf, -math.inf]


def test_truncation_forgets_later_steps_only_and_survives_a_kill(run: RunDirectory) -> None:
    for step in range(4):
        run.log(step, step, step, {"test/loss": step})
        if step == 1:
            run.flush_metrics()
    run.truncate_metrics(2)
    run.log(3, 9, 9, {"test/loss": 30})
    assert [(row[0], row[-1]) for row in rows(RunDirectory.open(run.path))] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    (run.path / "metrics.parquet").unlink()
    assert [(row[0], row[-1]) for row in rows(run)] == [(0, 0), (1, 1), (2, 2), (3, 30)]


def test_a_metric_without_scope_is_refused_before_anything_is_written(run: RunDirectory) -> None:
    for name in ("loss", "/loss", "test/", ""):
        with pytest.raises(ValueError, match="scope/name"):
            run.log(1, 0, 0, {name: 1.0})
    assert list(run.events()) == []


@pytest.mark.parametrize("keep", [0, 4, 100])
def test_a_truncated_parquet_file_is_a_resume_error_and_removing_it_rebuilds_it(run: RunDirectory, keep: int) -> None:
    run.log(1, 0, 0, {"test/loss": 1.0})
    run.flush_metrics()
    path = run.path / "metrics.parquet"
    whole = rows(run)
    path.write_bytes(path.read_bytes()[:keep])
    for read in (run.metrics, run.flush_metrics):
        with pytest.raises(ResumeError, match=r"metrics\.parquet is damaged") as caught:
            read()
        assert f"rm {path}" in caught.value.hint
    path.unlink()
    assert rows(run) == whole


def test_a_parquet_file_of_someone_else_is_a_resume_error(run: RunDirectory) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"step": [1]}), run.path / "metrics.parquet")
    with pytest.raises(ResumeError, match="does not say where"):
        run.metrics()


def test_events_cut_shorter_than_the_parquet_file_are_noticed(run: RunDirectory) -> None:
    run.log(1, 0, 0, {"test/loss": 1.0})
    run.flush_metrics()
    (run.path / "events.jsonl").write_text("")
    with pytest.raises(ResumeError, match="shorter than"):
        run.metrics()


def test_a_metrics_event_without_values_is_damage_with_its_place(run: RunDirectory) -> None:
    run.event("metrics", step=1)
    with pytest.raises(ResumeError, match=r"damaged between bytes 0 and \d+"):
        run.metrics()


# -------------------------------------------------------------------------------------------------------- lock


def test_a_second_writer_is_refused_with_the_process_that_holds_the_lock(run: RunDirectory) -> None:
    code = "import sys\nfrom orchestrator.rundir import RunDirectory\n"
    code += "with RunDirectory.open(sys.argv[1]).lock():\n print('held', flush=True)\n sys.stdin.read()\n"
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert run.locked()
        with pytest.raises(ResumeError, match=f"being written by process {other.pid}"), run.lock():
            pytest.fail("two writers")
        other.kill()
        other.wait()
    assert not run.locked()
    assert run.holder() == other.pid
    with run.lock():
        assert run.locked()


def test_the_lock_is_given_back_after_an_exception_and_sweeps_half_written_files(run: RunDirectory) -> None:
    (run.path / ".manifest.json.abcd.tmp").write_text("{")
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    assert not run.locked()
    assert run.holder() is None
    assert not list(run.path.glob(".*.tmp"))


# ------------------------------------------------------------------------------------------------- environment


def test_the_environment_names_versions_commit_and_machine_but_no_host(tmp_path: Path) -> None:
    found = environment(tmp_path)
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"ray", "torch", "pyarrow", "mlflow"} <= found["versions"].keys()
    assert found["git"] == {}
    assert found["machine"]["cpus"] >= 1
    assert found["machine"]["memory_bytes"] > 2**28
    json.dumps(found)


def test_git_state_tells_commit_and_changes(tmp_path: Path) -> None:
    def do(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    do("init")
    assert git(tmp_path) == {}
    (tmp_path / "a").write_text("1")
    do("add", "a")
    do("commit", "-m", "x")
    clean = git(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert git(tmp_path)["dirty"] is True
