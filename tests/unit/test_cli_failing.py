"""Every exception becomes words on standard error and one exit code, in one place."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest

import orchestrator.cli
from orchestrator.cli import failing, main
from orchestrator.errors import ConfigError, OrchestratorError, PlacementError, Problem, ResumeError, WorkerError
from orchestrator.life import RunInterrupted


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError([Problem("f:1", "a.b", "got 1, expected 2", "type 2")]), 2,
         "f:1: a.b: got 1, expected 2\n    type 2\n1 problem; nothing was started"),
        (ConfigError([Problem("f:1", "", "x"), Problem("f:2", "", "y")]), 2,
         "f:1: x\nf:2: y\n2 problems; nothing was started"),
        (PlacementError("short of 3 CPU", "ask for less"), 3, "error: short of 3 CPU\n  ask for less"),
        (WorkerError("ValueError: x", "worker 1", "10.0.0.1", "round 2", "Traceback ...", "mend it"), 4,
         "error: ValueError: x (round 2, worker 1, node 10.0.0.1)\nTraceback ...\n  mend it"),
        (ResumeError("not a run", "look"), 5, "error: not a run\n  look"),
        (OrchestratorError("no", "yes"), 1, "error: no\n  yes"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (RunInterrupted(Path("runs/x"), 3), 130, "interrupted after round 3; go on with: orchestrator resume runs/x"),
        (click.UsageError("no such thing"), 2, "no such thing"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 1, "no room left on the disk: f"),
        (RuntimeError("boom"), 70, "this is a bug in orchestrator, not in what you typed: RuntimeError: boom"),
    ],
)  # fmt: skip
def test_an_error_has_its_words_and_code(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing.exit_code(error) == code
    out, err = capsys.readouterr()
    assert out == "" and words in err
    assert ("Traceback (most" in err) == (code == 70 and error.__traceback__ is not None)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("1 / 0")

    monkeypatch.setattr(orchestrator.cli.cli.commands["list"], "callback", broken)
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    assert ended.value.code == 70
    assert 'raise ZeroDivisionError("1 / 0")' in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RunInterrupted(Path("runs/x"), 3)])
def test_ctrl_c_inside_a_command_is_130(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(**_: object) -> None:
        raise error

    monkeypatch.setattr(orchestrator.cli.cli.commands["list"], "callback", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["list"])
    assert ended.value.code == 130
    assert ("orchestrator resume runs/x" in capsys.readouterr().err) == isinstance(error, RunInterrupted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validat", "x"], "Did you mean 'validate'?"),
        (["exp.yaml"], "orchestrator run exp.yaml"),
        (["frobnicate"], "Commands: run, tune, submit, resume, plan, validate, report, export, list."),
        (["run"], "Missing argument 'EXP'"),
        (["run", "exp.yaml", "--lr=3"], "No such option"),
        (["report"], "Missing argument 'RUN_DIR'"),
        (["submit", "exp.yaml"], "Missing option '--address'"),
    ],
)
def test_what_is_no_command_line_is_told(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
