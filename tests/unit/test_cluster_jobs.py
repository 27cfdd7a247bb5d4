"""Following a job through a job server that breaks the stream, goes away for a while, or never comes back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import WSCloseCode, web
from ray.job_submission import JobStatus

from cluster import jobs
from cluster.errors import Unreachable

LOG = "".join(f"line {number}\n" for number in range(20))


class Server:
    """A job server of one job whose log stream breaks after so many characters, each time it is opened."""

    def __init__(self, breaks: list[int]) -> None:
        self.breaks = breaks
        self.streams = 0
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/jobs/{job}", self._info)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})

    async def _info(self, request: web.Request) -> web.Response:
        if request.match_info["job"] != "job-1":
            return web.Response(status=404, text="no such job")
        ended = self.streams > len(self.breaks)
        status = JobStatus.FAILED if ended else JobStatus.RUNNING
        more: dict[str, Any] = {"driver_exit_code": 4, "message": "it ended"} if ended else {}
        return web.json_response({"type": "SUBMISSION", "status": status, "entrypoint": "x", **more})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        limit = self.breaks[self.streams] if self.streams < len(self.breaks) else len(LOG)
        self.streams += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for start in range(0, limit, 7):
            await socket.send_str(LOG[start : min(start + 7, limit)])
        if limit < len(LOG):
            request.transport.abort()  # type: ignore[union-attr]
        else:
            await socket.close(code=WSCloseCode.OK)
        return socket


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(jobs, "PAUSE_S", 0.01)
    yield


@pytest.mark.parametrize("breaks", [[], [50], [0, 0, 33, 90, 20, 140]])
def test_every_piece_of_the_log_is_written_once_however_often_the_stream_breaks(breaks: list[int], quick: None) -> None:
    written: list[str] = []
    with Server(breaks) as server:
        outcome = jobs.follow(server.url, "job-1", written.append)
        assert server.streams == len(breaks) + 1
    assert "".join(written) == LOG
    assert outcome == jobs.JobOutcome("FAILED", 4, "it ended")


def test_following_again_goes_on_where_it_was_left(quick: None) -> None:
    written: list[str] = []
    with Server([50]) as server:
        jobs.follow(server.url, "job-1", written.append, num_seen=30)
    assert "".join(written) == LOG[30:]


def test_a_job_that_is_not_there_is_told(quick: None) -> None:
    with Server([]) as server, pytest.raises(jobs.JobFailed, match="no such job"):
        jobs.status(server.url, "job-2")


def test_a_server_that_stays_away_is_given_up(quick: None) -> None:
    with Server([]) as server:
        url = server.url
    began = time.monotonic()
    with pytest.raises(Unreachable, match="refused"):
        jobs.follow(url, "job-1", print, timeout_s=1.0, reconnect_timeout_s=0.2)
    assert time.monotonic() - began < 30


def test_an_error_of_the_one_who_writes_is_his_own(quick: None) -> None:
    def write(text: str) -> None:
        raise BrokenPipeError("nobody reads")

    with Server([]) as server, pytest.raises(BrokenPipeError, match="nobody reads"):
        jobs.follow(server.url, "job-1", write)
