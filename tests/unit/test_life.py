"""What a run directory says when a run has failed, and what a partition is summarised to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import orchestrator
from orchestrator.config.schema import Experiment
from orchestrator.executors import describe
from orchestrator.partition_summary import summarise
from orchestrator.preparing import prepare
from orchestrator.rundir import RunDirectory, find_runs


def config(root: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {"name": "digits", "partition": {"kind": "iid", "clients": 4}, "limit": 100},
        "model": {"name": "logistic"},
        "strategy": {"algorithm": {"rounds": 3}, "client": {"optimizer": {"lr": 0.1}}},
        "cluster": {"workers": 0},
        "tracking": {"enabled": False},
        "storage": {"root": str(root)},
        **changes,
    }


def test_a_worker_that_fails_is_in_the_manifest_with_all_that_is_known(tmp_path: Path) -> None:
    diverging = {"algorithm": {"rounds": 3}, "client": {"optimizer": {"lr": 1e38}, "epochs": 3}}
    with pytest.raises(orchestrator.WorkerError) as caught:
        orchestrator.run(config(tmp_path, strategy=diverging), quiet=True)
    (directory,) = find_runs(tmp_path)
    manifest = directory.manifest
    error = manifest["error"]
    assert manifest["status"] == "FAILED"
    assert error["type"] == "WorkerError"
    assert "NotFinite" in error["message"]
    assert error["place"].startswith("round 1, client")
    assert error["hint"].startswith("lower strategy.client.optimizer.lr")
    assert "Traceback" in error["remote_traceback"]
    assert caught.value.exit_code == 4
    page = (directory.path / "report.html").read_text()
    assert error["place"] in page and "Traceback" in page
    assert [event["kind"] for event in directory.events()][-2:] == ["failed", "run_finished"]


def test_a_failed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(orchestrator.WorkerError):
        orchestrator.run(config(tmp_path, strategy={"client": {"optimizer": {"lr": 1e38}, "epochs": 3}}), quiet=True)
    (directory,) = find_runs(tmp_path)
    with pytest.raises(orchestrator.ResumeError, match="would change what was already computed"):
        orchestrator.run(resume=directory.path, overrides=["strategy.client.optimizer.lr=0.1"], quiet=True)
    with pytest.raises(orchestrator.WorkerError):
        orchestrator.run(resume=directory.path, quiet=True)
    assert RunDirectory.open(directory.path).manifest["status"] == "FAILED"


def test_a_partition_is_summarised_with_its_classes_and_the_names_of_its_clients(tmp_path: Path) -> None:
    prepared = prepare(Experiment.model_validate(config(tmp_path)))
    summary = summarise(prepared.experiment, prepared)
    assert summary["class_names"] == [str(digit) for digit in range(10)]
    assert [client["name"] for client in summary["clients"]] == ["0", "1", "2", "3"]
    labels = prepared.dataset.train_y
    for number, client in enumerate(summary["clients"]):
        assert client["counts"] == np.bincount(labels[prepared.partition.rows(number)], minlength=10).tolist()
    json.dumps(summary)


def test_natural_clients_keep_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data.py").write_text(
        "import numpy as np\n"
        "def load():\n"
        "    x = np.arange(24, dtype=np.float32).reshape(12, 2)\n"
        "    y = np.arange(12) % 2\n"
        "    who = np.array([2, 0, 2, 2, 1, 0, 2, 0, 2, 2, 0, 2])\n"
        "    return dict(name='own', train_x=x, train_y=y, test_x=x, test_y=y, num_classes=2,\n"
        "                client_of=who, client_names=('Ada', 'Bo', 'Cyn'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = {"target": "own_data:load", "partition": {"kind": "column", "min_size": 2}}
    prepared = prepare(Experiment.model_validate(config(tmp_path, data=data)))
    summary = summarise(prepared.experiment, prepared)
    assert [client["name"] for client in summary["clients"]] == ["Ada", "Cyn"]
    assert [sum(client["counts"]) for client in summary["clients"]] == [4, 7]


def test_events_are_described_without_saying_worker_twice() -> None:
    assert describe({"worker": "worker 0", "node": "127.0.0.1"}) == "worker 0  node 127.0.0.1"
