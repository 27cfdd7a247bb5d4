"""Files of the data folder: fetched whole or not at all, checked always, and never waited for without end."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from trainers.data import DataError, data_folder
from trainers.data.download import RemoteFile, ensure

CONTENT = b"0123456789" * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:5000] if self.path == "/cut" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    thread.join()
    made.server_close()


def remote(server, path="whole", content=CONTENT):
    return RemoteFile("set/file.gz", f"{server}/{path}", len(content), hashlib.sha256(content).hexdigest())


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_missing_file_is_fetched_once(server, tmp_path) -> None:
    path = ensure(tmp_path, remote(server))
    assert path.read_bytes() == CONTENT
    assert ensure(tmp_path, remote("http://127.0.0.1:9")) == path
    assert names(tmp_path) == ["file.gz"]


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("gone", CONTENT, "404"),
        ("cut", CONTENT, "5000 of 10000 bytes"),
        ("whole", CONTENT[:-1], "longer than the published 9999 bytes"),
        ("whole", b"x" * len(CONTENT), "did not give the published file.gz"),
    ],
)
def test_what_is_not_the_published_file_is_not_kept(server, tmp_path, path, content, said) -> None:
    with pytest.raises(DataError, match=said):
        ensure(tmp_path, remote(server, path, content))
    assert names(tmp_path) == []


def test_being_offline_says_which_file_from_where_and_which_setting(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DataError) as caught:
            ensure(tmp_path, remote(address))
    assert str(tmp_path / "set" / "file.gz") in caught.value.message
    assert f"{address}/whole" in caught.value.message
    assert "ORCHESTRATOR_DATA" in caught.value.hint and "data.folder" in caught.value.hint
    assert names(tmp_path) == []


def test_a_server_that_sends_for_too_long_is_given_up(server, tmp_path) -> None:
    with pytest.raises(DataError, match="when time ran out"):
        ensure(tmp_path, remote(server), timeout_s=-1.0)
    assert names(tmp_path) == []


def test_a_damaged_file_is_named_and_left_for_the_user_to_delete(tmp_path) -> None:
    path = tmp_path / "set" / "file.gz"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="is not the published file: its sha256 is") as caught:
        ensure(tmp_path, remote("http://127.0.0.1:9"))
    assert "delete it" in caught.value.hint
    assert path.read_bytes() == b"damaged"


def test_a_folder_that_cannot_be_made_is_an_error_of_its_own(tmp_path) -> None:
    (tmp_path / "set").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cannot (be written|read)"):
        ensure(tmp_path, remote("http://127.0.0.1:9"))


def test_the_folder_is_the_setting_then_the_variable_then_the_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ORCHESTRATOR_DATA", raising=False)
    assert data_folder(None) == tmp_path / "home" / ".cache" / "orchestrator" / "data"
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "variable"))
    assert data_folder(None) == tmp_path / "variable"
    assert data_folder("~/setting") == tmp_path / "home" / "setting"
