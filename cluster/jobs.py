"""Submit a command to a cluster's job server, follow its output, and learn how it ended.

Over Ray's own client, with what it lacks: a dead address is told within seconds, an address given is the address
used whatever the environment says, and a log stream that breaks is taken up where it broke. Tokens are sent by Ray
as its environment says; none is ever written here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster import probe
from cluster.connect import found, loopback
from cluster.errors import ClusterError, Unreachable

_OVERRIDE = "RAY_API_SERVER_ADDRESS"
RECONNECT_TIMEOUT_S = 60.0
STOP_WAIT_S = 60  # for a stopped job to save its state; Ray gives 3 s when nothing is said
PAUSE_S = 1.0  # between two attempts at a server that is restarting
READ_TIMEOUT_S = 120.0  # Ray's own requests would wait for ever


class JobFailed(ClusterError):
    """The job server refused a request: no such job, or a working folder that cannot be sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JobOutcome(NamedTuple):
    """How a job ended.

    Args:
        status: SUCCEEDED, FAILED or STOPPED; PENDING or RUNNING while it has not.
        exit_code: of its command; None when it has none, as when it was stopped or never started.
        message: the job server's last word.
    """

    status: str
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def submit(
    address: str,
    entrypoint: str,
    *,
    working_dir: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    entrypoint_resources: Mapping[str, float] | None = None,
    timeout_s: float = 10.0,
) -> str:
    """Hand a shell command to the job server and return the job's id.

    Args:
        address: the server, `http://host:8265`, or `auto` for the one of this machine's cluster.
        working_dir: folder sent along; the command runs in a copy of it.
        runtime_env: Ray's runtime environment, such as `{"pip": [...], "env_vars": {...}}`.
        entrypoint_resources: what the command itself holds; default nothing, and then it runs on the head.
        timeout_s: longest wait for the server to answer at all.

    Raises:
        Unreachable: no job server there, or it asks for a token.
        JobFailed: it refused.
    """
    environment = dict(runtime_env or {})
    environment["env_vars"] = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **environment.get("env_vars", {})}
    if working_dir is not None:
        environment["working_dir"] = working_dir
    held = dict(entrypoint_resources or {})
    with _client(address, timeout_s) as client:
        return str(
            client.submit_job(
                entrypoint=entrypoint,
                runtime_env=environment,
                metadata=dict(metadata or {}),
                entrypoint_num_cpus=held.pop("CPU", None),
                entrypoint_num_gpus=held.pop("GPU", None),
                entrypoint_resources=held or None,
            )
        )


def status(address: str, job_id: str, *, timeout_s: float = 10.0) -> JobOutcome:
    """Ask how a job stands.

    Raises:
        Unreachable, JobFailed: as `submit`.
    """
    with _client(address, timeout_s) as client:
        info = client.get_job_info(job_id)
        return JobOutcome(str(info.status.value), info.driver_exit_code, info.message or "")


def stop(address: str, job_id: str, *, timeout_s: float = 10.0) -> bool:
    """Ask the server to end a job, which gets SIGTERM first; return whether it was running.

    Raises:
        Unreachable, JobFailed: as `submit`.
    """
    with _client(address, timeout_s) as client:
        return bool(client.stop_job(job_id))


def follow(
    address: str,
    job_id: str,
    write: Callable[[str], object],
    *,
    num_seen: int = 0,
    timeout_s: float = 10.0,
    reconnect_timeout_s: float = RECONNECT_TIMEOUT_S,
) -> JobOutcome:
    """Pass a job's output on as it comes until the job has ended, and return how.

    Args:
        write: called with pieces of text, each piece once, though the connection may break in between.
        num_seen: characters of the output to leave out, when it was followed so far before.
        reconnect_timeout_s: longest time to go without the server before giving up; the job goes on.

    Raises:
        Unreachable: the server is gone for longer than that.
        JobFailed: there is no such job.
    """
    last_contact = time.monotonic()
    while True:
        try:
            with _client(address, timeout_s) as client:
                # Of a job that is not there Ray's head would log our whole request, its token with it.
                client.get_job_info(job_id)
                last_contact = time.monotonic()
                try:
                    num_seen = asyncio.run(_tail(client, job_id, num_seen, write))
                except _Broken as broken:
                    num_seen = broken.num_seen
                outcome = status(address, job_id, timeout_s=timeout_s)
            if outcome.ended:
                return outcome
        except _NotWritten as failed:
            raise failed.error from None
        except Unreachable:
            if time.monotonic() - last_contact > reconnect_timeout_s:
                raise
        time.sleep(PAUSE_S)


class _Broken(Exception):
    """The log stream ended before the job did."""

    def __init__(self, num_seen: int) -> None:
        super().__init__(num_seen)
        self.num_seen = num_seen


class _NotWritten(Exception):
    """The caller's `write` raised, which says nothing about the server."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


async def _tail(client: Any, job_id: str, num_seen: int, write: Callable[[str], object]) -> int:
    """Write what the log has beyond its first `num_seen` characters; return how many it has now."""
    import aiohttp

    position = 0
    stream = client.tail_job_logs(job_id)
    while True:
        try:
            text = await anext(stream)
        except StopAsyncIteration:
            return num_seen
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise _Broken(num_seen) from error
        fresh = text[max(0, num_seen - position) :]
        position += len(text)
        num_seen = max(num_seen, position)
        if fresh:
            try:
                write(fresh)
            except Exception as error:
                raise _NotWritten(error) from error


@contextmanager
def _client(address: str, timeout_s: float) -> Iterator[Any]:
    """Yield Ray's client for exactly this address, its failures turned into ours."""
    import ray
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]  # the base is untyped
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, **{"timeout": (timeout_s, READ_TIMEOUT_S), **kwargs})

    probe.token_file(address)
    url = _server(address, timeout_s)
    host, port = probe.split(url.partition("://")[2].partition("/")[0], 443 if url.startswith("https") else 80)
    probe.tcp(address, host, port, timeout_s)
    if not ray.is_initialized():
        probe.read_token_again()
    before = os.environ.get(_OVERRIDE)
    os.environ[_OVERRIDE] = url  # Ray prefers RAY_ADDRESS to its argument, and this to both
    try:
        client = Client(url)
    except AuthenticationError as error:
        raise Unreachable(address, _token(error)) from None
    except (ConnectionError, requests.RequestException, RuntimeError, ValueError, KeyError) as error:
        raise Unreachable(address, f"no job server answers there: {_line(error)}") from error
    finally:
        if before is None:
            os.environ.pop(_OVERRIDE, None)
        else:
            os.environ[_OVERRIDE] = before
    try:
        yield client
    except AuthenticationError as error:
        raise Unreachable(address, _token(error)) from None
    except (ConnectionError, requests.RequestException) as error:
        raise Unreachable(address, f"the job server stopped answering: {_line(error)}") from error
    except (RuntimeError, ValueError) as error:
        raise JobFailed(_line(error)) from error


def _server(address: str, timeout_s: float) -> str:
    """Turn what a user gives into the job server's URL."""
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if address != "auto":
        raise Unreachable(address, "a job server's address looks like http://host:8265")
    from ray.dashboard.utils import ray_address_to_api_server_url

    head = found()
    if head.startswith(("http://", "https://")):
        return head.rstrip("/")
    probe.gcs(head, timeout_s)
    with loopback(head):
        return str(ray_address_to_api_server_url(head))


def _token(error: Exception) -> str:
    return probe.TOKEN_NOT_SENT if "required" in str(error) else probe.TOKEN_REFUSED


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
