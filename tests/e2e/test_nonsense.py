"""Nonsense given to every command ends with a clear message and the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import main

ROOT = Path(__file__).parents[2]

GOOD = """\
name: x
data: {name: digits, limit: 300, partition: {kind: iid, clients: 6}}
model: {name: logistic}
strategy:
  algorithm: {rounds: 2, cohort: 3}
cluster: {workers: 0}
tracking: {enabled: false}
checkpoint: {every: 1}
"""
OWN = """\
import torch

class Model(torch.nn.Linear):
    def __init__(self, input_shape, num_classes):
        super().__init__(64, num_classes)

    def forward(self, x):
        if self.training:
            raise ValueError("no luck today")
        return super().forward(x.flatten(1))
"""
READ_EXPERIMENTS = ("run", "plan", "validate", "tune", "submit")


class Shell:
    """A folder with an experiment file `exp.yaml`, and the command line in it.

    Most commands are run in this process, since importing torch anew takes longer than all they do; what starts Ray
    or must end as a process does gets a process of its own.
    """

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capture = capture
        (folder / "exp.yaml").write_text(GOOD)

    def type(self, *arguments: str, code: int, process: bool = False) -> str:
        """Run the command, hold its exit code against `code` and return what it said; a traceback is a failure."""
        if arguments[0] == "submit":
            arguments = (*arguments, "--address", "http://127.0.0.1:1")
        found, said = self._process(arguments) if process else self._here(arguments)
        assert found == code, said
        assert "this is a bug" not in said, said
        if code in (2, 3, 5):
            assert "Traceback" not in said, said
        return said

    def _here(self, arguments: tuple[str, ...]) -> tuple[object, str]:
        self._capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return ended.value.code, "".join(self._capture.readouterr())

    def _process(self, arguments: tuple[str, ...]) -> tuple[object, str]:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments], cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def files(self) -> set[str]:
        """Every file below the folder, without Python's own caches."""
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if "__pycache__" not in p.parts}

    def run_directory(self) -> Path:
        """A finished run."""
        self.type("run", "exp.yaml", "-q", code=0)
        [run] = (self.folder / "runs").iterdir()
        return run


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Shell(tmp_path, capsys)


@pytest.mark.parametrize("command", READ_EXPERIMENTS)
def test_files_that_are_no_experiments(shell: Shell, command: str) -> None:
    folder = shell.folder
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    (folder / "empty.yaml").touch()
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "tab.yaml").write_text("name: x\n\tdata: 1\n")
    (folder / "sub").mkdir()
    before = shell.files()
    cases = {
        "exp.yml": "exp.yml: does not exist\n    did you mean exp.yaml?",
        "nowhere/exp.yaml": "nowhere/exp.yaml: does not exist, nor does the folder nowhere",
        "sub": "sub: is a folder, expected an experiment file",
        "binary.yaml": "binary.yaml:",
        "empty.yaml": "empty.yaml:1: is empty, expected an experiment",
        "list.yaml": "list.yaml:1: holds [1], expected an experiment",
        "tab.yaml": "tab.yaml:2:1: a tab cannot indent YAML",
        "": "is a folder",
    }
    for name in cases if command == "validate" else ("exp.yml", "binary.yaml"):
        assert cases[name] in shell.type(command, name, code=2)
    assert shell.files() == before


@pytest.mark.parametrize("command", READ_EXPERIMENTS)
def test_experiments_that_make_no_sense(shell: Shell, command: str) -> None:
    (shell.folder / "bad.yaml").write_text(
        "name: 3\n"
        "seed: 1.5\n"
        "data: {name: digits, partition: {kind: iid, clients: 0}}\n"
        "model: {name: mlp, hidden: -1}\n"
        "strategy: {kind: fedrated}\n"
        "cluster: {workers: -2, address: nowhere, start_timeout_s: .inf}\n"
        "trakcing: {}\n"
    )
    before = shell.files()
    said = shell.type(command, "bad.yaml", "seed=x", "model.hiden=3", "nonsense", code=2)
    for line in (
        "bad.yaml:1: name: got 3, expected a name",
        "bad.yaml:3: data.partition.clients: got 0, expected a whole number above 0",
        "bad.yaml:4: model.hidden: got -1, expected a list of whole numbers above 0",
        "bad.yaml:5: strategy.kind: got 'fedrated', expected one of federated, peers, pipeline, graph-pipeline, "
        "local-learning, zero, sharded\n    did you mean",
        "bad.yaml:6: cluster.start_timeout_s: got .inf, expected",
        "bad.yaml:6: cluster.address: got 'nowhere', expected local, auto, ray://host:port or host:port",
        "bad.yaml:6: cluster.workers: got -2, expected a whole number of at least 0",
        "bad.yaml:7: trakcing: unknown key 'trakcing'\n    did you mean 'tracking'?",
        "command line: seed: got 'x', expected a whole number of at least 0",
        "command line: model.hiden: unknown key 'hiden'",
        "command line: got 'nonsense', expected field=value",
        "11 problems; nothing was started",
    ):
        assert line in said
    assert shell.files() == before


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_experiments_that_cannot_be_carried_out(shell: Shell, command: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cut = shell.folder / "cut.parquet"
    pq.write_table(pa.table({"x": [[0.0, 1.0]] * 50, "y": [0, 1] * 25}), cut)
    cut.write_bytes(cut.read_bytes()[:-30])
    before = shell.files()
    said = shell.type(
        command, "exp.yaml", "strategy.client.optimizer.name=sgdd", "model={target: 'nowhere_at_all:f'}", code=2
    )
    assert "strategy.client.optimizer.name: no optimizer 'sgdd' in torch.optim\n    did you mean 'sgd'?" in said
    assert "there is no module 'nowhere_at_all'" in said
    said = shell.type(command, "exp.yaml", "data={name: parquet, path: cut.parquet, features: x, label: y}", code=2)
    assert "command line: data:" in said and "cut.parquet" in said
    said = shell.type(command, "exp.yaml", "data.limit=null", "data.partition.clients=100000", code=2)
    assert "command line: data.partition.clients: 100000 clients" in said
    assert shell.files() == before


def test_more_than_the_machine_has(shell: Shell) -> None:
    before = shell.files()
    for command in (["plan", "exp.yaml"], ["run", "exp.yaml", "--dry-run"], ["run", "exp.yaml"]):
        said = shell.type(*command, "cluster.workers=3000", code=3, process=command == ["run", "exp.yaml"])
        assert "of 3000 workers fit on 1 node: short of" in said
        assert "missing" in said
    assert shell.files() == before


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_cluster_that_is_not_there(shell: Shell, command: str) -> None:
    before = shell.files()
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        said = shell.type(
            command, "exp.yaml", "cluster.workers=1", f"cluster.address='{address}'", code=3, process=True
        )
        assert f"no Ray cluster answers at '{address}'" in said
    assert shell.files() == before


def test_a_job_server_that_is_not_there(shell: Shell) -> None:
    before = shell.files()
    assert "no job server answers at http://127.0.0.1:1" in shell.type("submit", "exp.yaml", code=3, process=True)
    assert shell.files() == before


def test_folders_that_cannot_hold_a_run(shell: Shell) -> None:
    (shell.folder / "file").touch()
    before = shell.files()
    for root in ("file/sub", "/proc/nowhere"):
        assert "storage.root: cannot make a run directory here" in shell.type("run", "exp.yaml", "--root", root, code=2)
    assert shell.files() == before


def test_a_loss_that_is_not_a_number_ends_the_run_as_failed(shell: Shell) -> None:
    said = shell.type("run", "exp.yaml", "strategy.client.optimizer.lr=1e300", code=4, process=True)
    assert "round 1, client" in said and "strategy.client.optimizer.lr" in said
    [run] = (shell.folder / "runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "FAILED" and "diverged" in manifest["error"]["message"]
    assert not any(".tmp" in name for name in shell.files())


def test_own_code_that_raises_in_training_is_shown_with_its_traceback(shell: Shell) -> None:
    (shell.folder / "own_model.py").write_text(OWN)
    said = shell.type("run", "exp.yaml", "model={target: 'own_model:Model'}", code=4, process=True)
    assert "ValueError: no luck today" in said and "own_model.py" in said
    assert "round 1, client" in said


def test_directories_that_are_no_runs(shell: Shell) -> None:
    (shell.folder / "sub").mkdir()
    (shell.folder / "damaged").mkdir()
    (shell.folder / "damaged" / "manifest.json").write_text('{"format": 1, "kind"')
    (shell.folder / "later").mkdir()
    (shell.folder / "later" / "manifest.json").write_text('{"format": 99}')
    before = shell.files()
    for command in ("resume", "report"):
        for name, words in {
            "nowhere": "not a run directory",
            "sub": "not a run directory",
            "exp.yaml": "not a run directory",
            "damaged": "manifest.json is damaged",
            "later": "run directory format 99",
        }.items():
            assert words in shell.type(command, name, code=5)
    assert "nowhere: does not exist" in shell.type("list", "nowhere", code=2)
    assert "exp.yaml: is not a folder" in shell.type("list", "exp.yaml", code=2)
    assert "no runs" in shell.type("list", "sub", code=0)
    assert shell.files() == before


def test_a_checkpoint_that_is_damaged(shell: Shell) -> None:
    run = shell.run_directory()
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "status": "RUNNING"}))
    for path in (run / "checkpoints").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = shell.type("resume", str(run), code=5)
    assert "checkpoint" in said
    assert json.loads((run / "manifest.json").read_text())["step"] == manifest["step"]


def test_a_resume_that_would_change_what_was_computed(shell: Shell) -> None:
    run = shell.run_directory()
    before = shell.files()
    assert "would change what was already computed" in shell.type("resume", str(run), "seed=9", code=5)
    assert "unknown key 'wrokers'" in shell.type("resume", str(run), "cluster.wrokers=1", code=2)
    assert shell.files() == before


def test_a_search_without_a_search(shell: Shell) -> None:
    before = shell.files()
    assert "search: is missing: there is nothing to vary" in shell.type("tune", "exp.yaml", code=2, process=True)
    said = shell.type("tune", "exp.yaml", "search.space.lr={choice: [1]}", "search.trials=0", code=2)
    assert "did you mean strategy.client.optimizer.lr?" in said
    assert shell.files() == before
