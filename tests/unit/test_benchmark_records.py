"""Long benchmarks keep their runs in a file and do none of them twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bristle, byzfl_rows, records


def test_a_run_is_measured_once_and_then_read(tmp_path: Path) -> None:
    file, calls = tmp_path / "runs.jsonl", []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"best": 0.1 + 0.2, "first": [10, None]}

    first = records.once(file, {"row": "a", "seed": 0}, measure)
    again = records.once(file, {"row": "a", "seed": 0}, measure)
    assert first == again == {"row": "a", "seed": 0, "best": 0.1 + 0.2, "first": [10, None]}
    assert len(calls) == 1
    records.once(file, {"row": "a", "seed": 1}, measure)
    assert len(calls) == 2
    assert [run["seed"] for run in records.read(file)] == [0, 1]


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    assert records.once(None, {"row": "a"}, lambda: {"best": 1.0}) == {"row": "a", "best": 1.0}
    assert records.found(None, {"row": "a"}) is None
    assert records.read(tmp_path / "absent.jsonl") == []


def test_rows_of_byzfl_are_filled_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = []

    def measured(root: Path, settings: dict[str, Any]) -> dict[str, float]:
        given.append(settings["strategy"]["attack"]["name"])
        return {"best": 0.5 + 0.1 * len(given), "last": 0.3, "seconds": 60.0}

    monkeypatch.setattr(byzfl_rows, "measured", measured)
    out = str(tmp_path / "runs.jsonl")

    def told(*arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["byzfl_rows", "--out", out, "--rows", "0.33:3", *arguments])
        byzfl_rows.main()
        return capsys.readouterr().out.splitlines()[2:]

    assert told("--aggregators", "trimmed_mean", "--attacks", "sign_flip") == []  # the worst of three is not known
    assert told("--aggregators", "trimmed_mean") == ["| trimmed_mean | 0.33 | 3 | 0.600 | 0.300 | 0.94 | 3.0 |"]
    assert given == [*byzfl_rows.ATTACKS]
    assert told("--table") == ["| trimmed_mean | 0.33 | 3 | 0.600 | 0.300 | 0.94 | 3.0 |"]
    assert len(given) == 3


def test_without_attackers_bristle_has_one_row_whatever_the_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def measured(root: Path, settings: dict[str, Any], attackers: int) -> dict[str, Any]:
        made.append(settings["seed"])
        return {"accuracy": 0.8 + 0.1 * settings["seed"], "first": [20, 30, None], "sent": 1.0, "seconds": 5.0}

    monkeypatch.setattr(bristle, "measured", measured)
    attacks = ["--attacks", "flip all", "noise", "--attackers", "0", "--methods", "mean", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["bristle", "--out", str(tmp_path / "runs.jsonl"), *attacks])
    bristle.main()
    row = "| none | 0 | mean | 2 | 0.850 (0.800 to 0.900) | 20, 30, never | 1.0 | 5 |"
    assert capsys.readouterr().out.splitlines()[2:] == [row, row]
    assert made == [0, 1]
