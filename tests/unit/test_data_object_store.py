"""A table in an object store, through a small S3 server of our own: the data is that on disk, and no key is shown."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainers.data import DataError, load

MODIFIED = formatdate(0, usegmt=True)


class Bucket(BaseHTTPRequestHandler):
    """HeadObject, GetObject with a range, and ListObjectsV2 over the files of `server.folder`."""

    def do_HEAD(self) -> None:
        self.answer(send_body=False)

    def do_GET(self) -> None:
        self.answer(send_body=True)

    def answer(self, send_body: bool) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = self.server.folder / unquote(url.path).lstrip("/")
        if "list-type" in query:
            self.reply(200, self.listing(path, query.get("prefix", [""])[0]), send_body)
        elif path.is_file():
            content = path.read_bytes()
            asked = self.headers.get("Range")
            if asked:
                first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
                self.reply(206, content[first : last + 1], send_body, f"bytes {first}-{last}/{len(content)}")
            else:
                self.reply(200, content, send_body)
        else:
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>", send_body)

    def listing(self, bucket: Path, prefix: str) -> bytes:
        keys = [str(path.relative_to(bucket)) for path in sorted(bucket.rglob("*")) if path.is_file()]
        entries = [
            f"<Contents><Key>{key}</Key><Size>{(bucket / key).stat().st_size}</Size>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
            if key.startswith(prefix)
        ]
        body = f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(entries)}"
        return f'<?xml version="1.0"?><ListBucketResult><Name>{bucket.name}</Name>{body}</ListBucketResult>'.encode()

    def reply(self, status: int, content: bytes, send_body: bool, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Last-Modified", MODIFIED)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if send_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    table = {"a": np.arange(40.0), "b": np.arange(40) % 7, "label": np.arange(40) % 2}
    for client in ("ann", "ben"):
        folder = tmp_path / "bucket" / "train" / f"user={client}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(table), folder / "part.parquet", row_group_size=9)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.folder = tmp_path
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"endpoint_override=127.0.0.1%3A{server.server_port}&scheme=http&region=us-east-1"
    server.shutdown()
    thread.join()
    server.server_close()


def section(path: str) -> dict[str, object]:
    return {"name": "parquet", "path": path, "features": ["a", "b"], "label": "label", "client": "user"}


def test_a_table_in_an_object_store_is_the_table_on_disk(store: str, tmp_path: Path) -> None:
    far = load(section(f"s3://key:hush@bucket/train?{store}"), seed=0)
    near = load(section(str(tmp_path / "bucket" / "train")), seed=0)
    for field in ("train_x", "train_y", "test_x", "test_y", "client_of"):
        assert np.array_equal(getattr(far, field), getattr(near, field))
    assert far.client_names == ("ann", "ben")
    assert far.name == "s3://bucket/train"


@pytest.mark.parametrize(
    ("path", "said"), [("bucket/nothing", "does not exist"), ("bucket/train/notes", "damaged|whole")]
)
def test_what_is_wrong_in_an_object_store_is_said_without_keys(
    store: str, tmp_path: Path, path: str, said: str
) -> None:
    if path.endswith("notes"):
        (tmp_path / path).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=said) as caught:
        load(section(f"s3://key:hush@{path}?{store}"), seed=0)
    assert "hush" not in str(caught.value)
