"""`orchestrator submit`: what is sent to the job server, what its answers become, and what Ctrl-C does."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from cluster import jobs
from cluster.errors import Unreachable
from cluster.jobs import JobFailed, JobOutcome
from orchestrator.cli import main

FILE = "name: x\ndata: {name: digits}\nmodel: {name: mlp}\n"
URL = "http://127.0.0.1:1"


class Server:
    """Stands for the job server: notes what it is asked and answers as told."""

    def __init__(self) -> None:
        self.submitted: list[dict[str, Any]] = []
        self.stopped: list[str] = []
        self.answers: list[Any] = [JobOutcome("SUCCEEDED", 0, "")]

    def submit(self, address: str, entrypoint: str, **fields: Any) -> str:
        self.submitted.append({"address": address, "entrypoint": shlex.split(entrypoint), **fields})
        return "job_1"

    def follow(self, address: str, job: str, write: Callable[[str], object], *, num_seen: int) -> JobOutcome:
        write("round 1\n"[num_seen:])
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[no-any-return]

    def stop(self, address: str, job: str) -> bool:
        self.stopped.append(job)
        return True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A job server, and an experiment file in the current folder."""
    found = Server()
    for name in ("submit", "follow", "stop"):
        monkeypatch.setattr(jobs, name, getattr(found, name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.yaml").write_text(FILE)
    return found


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_job_runs_the_same_command_there(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("exp.yaml", "seed=9", "tracking.experiment='a b'", "--address", URL, "--root", "/shared/runs") == 0
    [job] = server.submitted
    assert job["address"] == URL
    assert job["entrypoint"] == [
        "orchestrator",
        "run",
        "exp.yaml",
        "seed=9",
        "tracking.experiment='a b'",
        "--root",
        "/shared/runs",
    ]
    assert job["working_dir"] == str(tmp_path)
    assert job["metadata"] == {"name": "x", "submitted_by": "orchestrator"}
    assert "/runs/" in job["runtime_env"]["excludes"]
    out, err = capsys.readouterr()
    assert out == "round 1\n"
    assert "submitted job_1" in err and "job_1 SUCCEEDED" in err


def test_a_file_in_a_folder_below_keeps_its_path(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.yaml").write_text(FILE)
    assert run("a/b.yaml", "--address", URL) == 0
    assert server.submitted[0]["entrypoint"] == ["orchestrator", "run", "a/b.yaml"]


def test_a_working_folder_is_sent_and_the_file_named_from_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.yaml").write_text(FILE)
    assert run("a/b.yaml", "--address", URL, "--working-dir", "a") == 0
    assert server.submitted[0]["entrypoint"][2] == "b.yaml"
    assert server.submitted[0]["working_dir"] == str(tmp_path / "a")


def test_a_file_outside_the_working_folder_is_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    assert run("exp.yaml", "--address", URL, "--working-dir", "a") == 2
    assert server.submitted == []
    assert f"--working-dir {tmp_path}" in capsys.readouterr().err
    assert run("exp.yaml", "--address", URL, "--working-dir", "nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_bad_file_is_told_before_anything_is_sent(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("exp.yaml", "seed=-1", "--address", URL) == 2
    assert server.submitted == []
    assert "command line: seed: got -1" in capsys.readouterr().err


def test_a_search_is_submitted_as_one(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("exp.yaml", "--tune", "--address", URL) == 2
    assert "search: is missing, and --tune needs it" in capsys.readouterr().err
    assert run("exp.yaml", "search.space.seed={choice: [1, 2]}", "--tune", "--address", URL) == 0
    assert server.submitted[0]["entrypoint"][:2] == ["orchestrator", "tune"]


def test_a_runtime_environment_is_sent(server: Server, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("pip: [einops]\nenv_vars: {A: '1'}\nexcludes: [big/]\n")
    assert run("exp.yaml", "--runtime-env", "env.yaml", "--address", URL) == 0
    environment = server.submitted[0]["runtime_env"]
    assert environment["pip"] == ["einops"] and environment["env_vars"] == {"A": "1"}
    assert environment["excludes"][0] == "big/" and "/.git/" in environment["excludes"]


@pytest.mark.parametrize("content", ["", "[a]", "a: [", "\x00"])
def test_a_runtime_environment_that_is_none_is_told(server: Server, tmp_path: Path, content: str) -> None:
    (tmp_path / "env.yaml").write_text(content)
    assert run("exp.yaml", "--runtime-env", "env.yaml", "--address", URL) == 2
    assert run("exp.yaml", "--runtime-env", "nowhere.yaml", "--address", URL) == 2
    assert run("exp.yaml", "--runtime-env", ".", "--address", URL) == 2
    assert server.submitted == []


def test_a_runtime_environment_that_ray_refuses_is_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise TypeError("runtime_env['pip'] must be of type str or List[str], got <class 'int'>")

    monkeypatch.setattr(jobs, "submit", refuse)
    (tmp_path / "env.yaml").write_text("pip: 5\n")
    assert run("exp.yaml", "--runtime-env", "env.yaml", "--address", URL) == 2
    assert "env.yaml: runtime_env['pip'] must be of type" in capsys.readouterr().err


def test_without_waiting_the_job_is_all_that_is_printed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("exp.yaml", "--no-wait", "--address", URL) == 0
    out, err = capsys.readouterr()
    assert out == "job_1\n"
    assert f"ray job logs --follow --address {URL} job_1" in err


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (JobOutcome("SUCCEEDED", 0, ""), 0),
        (JobOutcome("FAILED", 2, "bad file"), 2),
        (JobOutcome("FAILED", 5, "exit code 5, last available logs:\nround 1"), 5),
        (JobOutcome("FAILED", None, "the driver was lost"), 1),
        (JobOutcome("FAILED", -9, ""), 137),
        (JobOutcome("FAILED", 127, ""), 127),
        (JobOutcome("FAILED", 0, ""), 1),
        (JobOutcome("STOPPED", None, ""), 1),
    ],
)
def test_the_exit_code_is_the_jobs(
    server: Server, outcome: JobOutcome, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [outcome]
    assert run("exp.yaml", "--address", URL) == code
    err = capsys.readouterr().err
    assert f"job_1 {outcome.status}" in err and outcome.message.partition(", last")[0] in err
    assert "round 1" not in err
    assert ("not installed on the cluster" in err) == (code == 127)


@pytest.mark.parametrize("error", [Unreachable(URL, "connection refused"), JobFailed("no such job")])
def test_a_server_that_does_not_answer_or_refuses_is_3(
    server: Server, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answers = [error]
    assert run("exp.yaml", "--address", URL) == 3
    assert error.args[-1] in capsys.readouterr().err


def test_ctrl_c_without_a_terminal_leaves_the_job_running(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.answers = [KeyboardInterrupt()]
    assert run("exp.yaml", "--address", URL) == 130
    assert server.stopped == []
    assert f"ray job stop --address {URL} job_1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "typed", "stopped", "code"),
    [
        ([KeyboardInterrupt()], ["leave"], [], 130),
        ([KeyboardInterrupt(), JobOutcome("STOPPED", None, "")], ["stop"], ["job_1"], 130),
        ([KeyboardInterrupt(), JobOutcome("SUCCEEDED", 0, "")], ["stop"], ["job_1"], 0),
        ([KeyboardInterrupt(), JobOutcome("SUCCEEDED", 0, "")], ["continue"], [], 0),
        ([KeyboardInterrupt(), KeyboardInterrupt()], ["continue", "leave"], [], 130),
        ([KeyboardInterrupt(), KeyboardInterrupt()], ["stop"], ["job_1"], 130),
        ([KeyboardInterrupt()], [click.Abort()], [], 130),
    ],
)
def test_ctrl_c_at_a_terminal_asks(
    server: Server, answers: list[Any], typed: list[Any], stopped: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prompt(*_: Any, **__: Any) -> str:
        answer = typed.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return str(answer)

    server.answers = answers
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", prompt)
    assert run("exp.yaml", "--address", URL) == code
    assert server.stopped == stopped and typed == []
