"""Which URI wins, and which are refused before a run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.schema import Tracking
from orchestrator.tracking_uri import VARIABLE, check, resolve, run_root, without_password


@pytest.fixture
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.usefixtures("no_variable")
def test_default_is_sqlite_in_the_run_root_with_artifacts_beside_it(tmp_path: Path) -> None:
    target = resolve(Tracking(), tmp_path / "runs" / "exp-1")
    assert target.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert target.artifacts == tmp_path / "runs" / "mlartifacts"
    assert target.identity == "default"


def test_the_variable_wins_over_the_default_and_the_setting_over_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "http://elsewhere:5000")
    assert resolve(Tracking(), tmp_path / "run").uri == "http://elsewhere:5000"
    assert resolve(Tracking(uri="http://here:5000"), tmp_path / "run").uri == "http://here:5000"
    assert resolve(Tracking(uri="http://here:5000"), tmp_path / "run").artifacts is None


@pytest.mark.usefixtures("no_variable")
def test_a_resume_without_the_variable_finds_the_server_that_the_run_used(tmp_path: Path) -> None:
    recorded = {"uri": "http://elsewhere:5000", "given": VARIABLE, "run_id": "1"}
    assert resolve(Tracking(), tmp_path / "run", recorded).uri == "http://elsewhere:5000"


@pytest.mark.usefixtures("no_variable")
def test_a_relative_database_stays_where_it_was_when_a_run_is_resumed_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = Tracking(uri="sqlite:///mine.db")
    first = resolve(settings, tmp_path / "run")
    assert first.database == tmp_path / "mine.db"
    monkeypatch.chdir(tmp_path / "other")
    assert resolve(settings, tmp_path / "run", first.record()) == first


@pytest.mark.usefixtures("no_variable")
def test_a_moved_run_root_keeps_its_own_database(tmp_path: Path) -> None:
    before = resolve(Tracking(), tmp_path / "old" / "run")
    after = resolve(Tracking(), tmp_path / "new" / "run", before.record())
    assert after.database == tmp_path / "new" / "mlflow.db"
    assert after.identity == before.identity


def test_a_trial_is_recorded_in_the_root_of_its_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "sweep"
    (sweep / "trials").mkdir(parents=True)
    (sweep / "manifest.json").write_text("{}")
    assert run_root(sweep / "trials" / "0001") == tmp_path / "runs"
    assert run_root(sweep) == tmp_path / "runs"


@pytest.mark.parametrize(
    ("uri", "says", "type_this"),
    [
        ("mlruns", "folder", "tracking.uri=sqlite:///"),
        ("./mlruns", "folder", "tracking.uri=sqlite:///"),
        ("file:///var/mlruns", "folder", "tracking.uri=sqlite:////var/mlruns/mlflow.db"),
        ("file:/var/mlruns", "folder", "tracking.uri=sqlite:////var/mlruns/mlflow.db"),
        ("localhost:5000", "no scheme", "tracking.uri=http://localhost:5000"),
        ("htpp://localhost:5000", "does not know", "did you mean http://"),
        ("ftp://host/x", "does not know", ""),
        ("http://", "no host", "http://localhost:5000"),
        ("http://host:port", "no host", "http://localhost:5000"),
        ("http://host:99999", "no host", "http://localhost:5000"),
        ("sqlite://x.db", "slashes", "sqlite:////"),
        ("sqlite:///:memory:", "memory", "sqlite:////"),
        ("sqlite:////dev/null/x.db", "cannot be written", ""),
        ("mysql+nodriver://user:secret@host/db", "needs the Python package nodriver", "pip install nodriver"),
    ],
)
def test_a_uri_that_can_never_work_is_refused_with_what_to_type(uri: str, says: str, type_this: str) -> None:
    (problem,) = check(Tracking(uri=uri))
    assert problem.path == "tracking.uri"
    assert says in problem.message
    assert type_this in problem.hint
    assert "secret" not in str(problem)


def test_a_folder_or_another_file_in_place_of_a_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all")
    (tmp_path / "empty.db").touch()
    assert "is a folder" in check(Tracking(uri=f"sqlite:///{tmp_path}"))[0].message
    assert "no SQLite database" in check(Tracking(uri=f"sqlite:///{tmp_path}/notes.txt"))[0].message
    assert check(Tracking(uri=f"sqlite:///{tmp_path}/empty.db")) == []


def test_the_variable_is_checked_too_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "file:///tmp/mlruns")
    (problem,) = check(Tracking())
    assert problem.path == VARIABLE
    assert f"export {VARIABLE}=sqlite:///" in problem.hint
    assert check(Tracking(enabled=False)) == []
    assert check(Tracking(uri="http://user:secret@host:5000/path")) == []


@pytest.mark.usefixtures("no_variable")
def test_nothing_set_is_fine_and_databricks_is_known() -> None:
    assert check(Tracking()) == []
    assert check(Tracking(uri="databricks")) == []
    assert check(Tracking(uri="databricks://profile")) == []


def test_passwords_are_never_shown(tmp_path: Path) -> None:
    uri = "http://me:secret@host:5000/a@b"
    assert without_password(uri) == "http://host:5000/a@b"
    target = resolve(Tracking(uri=uri), tmp_path / "run")
    assert target.uri == uri
    assert "secret" not in str(target.record()) + target.shown + target.identity
