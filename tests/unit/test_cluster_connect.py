"""Addresses that cannot be reached are refused in seconds, with the reason; nothing is left changed."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import errors, jobs
from cluster.connect import connect, inside_job


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def web_port() -> Iterator[int]:
    """A port where something answers that is no Ray."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def refusal(address: str) -> str:
    with pytest.raises(errors.Unreachable) as caught, connect(address, timeout_s=1.0):
        pass
    assert caught.value.address == address
    return caught.value.reason


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_closed_port_is_told(scheme: str) -> None:
    assert "connection refused" in refusal(f"{scheme}127.0.0.1:{closed_port()}")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_that_never_answers_is_given_up(scheme: str, silent_port: int) -> None:
    assert "does not answer as Ray does" in refusal(f"{scheme}127.0.0.1:{silent_port}")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_of_something_else_is_told(scheme: str, web_port: int) -> None:
    assert "does not answer as Ray does" in refusal(f"{scheme}127.0.0.1:{web_port}")


def test_a_host_without_a_name_is_told() -> None:
    assert refusal("no-such-host.invalid:6379").startswith("no-such-host.invalid:6379: ")


@pytest.mark.parametrize(
    "address", ["", "here", "host:port", "http://127.0.0.1:8265", "ray://", "127.0.0.1:0", ":6379"]
)
def test_what_is_no_address_is_told_with_the_forms_there_are(address: str) -> None:
    assert "host:port" in refusal(address)


def test_a_refusal_leaves_the_environment_and_the_signal_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    before, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    refusal(f"127.0.0.1:{closed_port()}")
    assert dict(os.environ) == before
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("content, reason", [(None, "no such file"), ("  \n", "which is empty")])
@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://127.0.0.1:10001", "local", "http://127.0.0.1:8265"])
def test_a_token_file_that_cannot_be_read_is_told_before_ray_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_port: int, address: str, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    if address.startswith("http"):
        with pytest.raises(errors.Unreachable, match=reason):
            jobs.stop(f"http://127.0.0.1:{silent_port}", "job", timeout_s=1.0)
    else:
        assert reason in refusal(address)


def test_a_job_is_known_by_what_the_job_server_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert not inside_job()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_x"}}')
    assert inside_job()


def test_inside_a_job_local_means_the_jobs_cluster_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    address, told = f"127.0.0.1:{closed_port()}", []
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "raysubmit_x"}}')
    with pytest.raises(errors.Unreachable) as caught, connect("local", notify=lambda *what: told.append(what)):
        pass
    assert caught.value.address == address
    assert told == [("joined_job", {"job": "raysubmit_x", "address": address})]


@pytest.mark.parametrize(
    "address, reason",
    [
        ("ray://127.0.0.1:10001", "looks like http://host:8265"),
        ("127.0.0.1:6379", "looks like http://host:8265"),
        ("http://127.0.0.1:{closed}", "connection refused"),
        ("http://127.0.0.1:{web}", "no job server answers there"),
    ],
)
def test_a_job_server_that_is_none_is_told(
    address: str, reason: str, web_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # which Ray's own client would prefer to what is given
    before = dict(os.environ)
    with pytest.raises(errors.Unreachable, match=reason):
        jobs.submit(address.format(closed=closed_port(), web=web_port), "true", timeout_s=1.0)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "error",
    [
        errors.Unreachable("a:1", "dead"),
        errors.PlacementFailed("too few", "table"),
        errors.RemoteFailure("ValueError: x", "worker 1", "10.0.0.1", 3, "Traceback", True),
        jobs.JobFailed("no such job"),
    ],
)
def test_errors_survive_pickling(error: errors.ClusterError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert again.args == error.args
