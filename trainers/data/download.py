"""Files of public data sets: found in the data folder, or fetched into it once, and always checked.

A file is whole or absent: it is written beside its place and renamed after its checksum was seen. No wait is
unbounded, and being offline is an ordinary answer that says which file is missing and where to put it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from trainers.data.base import DataError

SETTING = "data.folder or ORCHESTRATOR_DATA names the folder"
CONNECT_TIMEOUT_S = 20.0
DOWNLOAD_TIMEOUT_S = 600.0
_CHUNK_BYTES = 1 << 18


class RemoteFile(NamedTuple):
    """A public file: its place in the data folder, its address, and what it must contain."""

    path: str
    url: str
    size_bytes: int
    sha256: str


def data_folder(setting: str | None) -> Path:
    """Return the data folder: the setting, else `ORCHESTRATOR_DATA`, else the user's cache."""
    chosen = setting or os.environ.get("ORCHESTRATOR_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "orchestrator" / "data"


def cache_folder() -> Path:
    """Return the folder for derived files: `ORCHESTRATOR_CACHE`, else the user's cache."""
    chosen = os.environ.get("ORCHESTRATOR_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "orchestrator"


def ensure(folder: Path, file: RemoteFile, *, timeout_s: float = DOWNLOAD_TIMEOUT_S) -> Path:
    """Return the path of a file of the data folder, fetching it when it is not there.

    Raises:
        DataError: when it cannot be read, fetched or written, or is not the file that was published.
    """
    path = folder / file.path
    try:
        present = path.exists()
        found = _checksum(path) if present else ""
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", f"{SETTING}; check its permissions"
        ) from error
    if present and found != file.sha256:
        raise DataError(
            f"{path} is not the published file: its sha256 is {found}, expected {file.sha256}",
            f"delete it to have it fetched again from {file.url}",
        )
    if not present:
        _fetch(path, file, timeout_s)
    return path


def _checksum(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _fetch(path: Path, file: RemoteFile, timeout_s: float) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise DataError(
            f"{path} is missing, and its folder cannot be written: {error.strerror or error}",
            f"{SETTING}; choose one that can be written, or put the file there: {file.url}",
        ) from error
    try:
        with os.fdopen(handle, "wb") as sink:
            found = _copy(file, sink, time.monotonic() + timeout_s)
        if found != file.sha256:
            raise DataError(
                f"{file.url} did not give the published {path.name}: sha256 {found}, expected {file.sha256}",
                f"fetch it elsewhere and put it at {path}",
            )
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{path} is missing, and {file.url} could not be fetched: {error}",
            f"when offline, put the file there yourself; {SETTING} (here {str(path)[: -len(file.path) - 1]})",
        ) from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _copy(file: RemoteFile, sink: object, deadline: float) -> str:
    digest, num_bytes = hashlib.sha256(), 0
    with urllib.request.urlopen(file.url, timeout=CONNECT_TIMEOUT_S) as source:
        while chunk := source.read1(_CHUNK_BYTES):
            num_bytes += len(chunk)
            if num_bytes > file.size_bytes:
                raise OSError(f"it is longer than the published {file.size_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {num_bytes} of {file.size_bytes} bytes had arrived when time ran out")
            digest.update(chunk)
            sink.write(chunk)  # type: ignore[attr-defined]
    if num_bytes < file.size_bytes:
        raise OSError(f"the connection ended after {num_bytes} of {file.size_bytes} bytes")
    return digest.hexdigest()
