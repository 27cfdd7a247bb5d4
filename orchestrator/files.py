"""Writing a file so that a reader, or a crash, sees the old content or the new and never a part of either.

Checkpoints and final weights do not come through here: they may live in an object store.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError


def write_whole(path: Path, content: bytes | str) -> None:
    """Replace a file by writing a sibling, syncing it to the disk and renaming it.

    Raises:
        OrchestratorError: when the disk is full or the folder is not writable; the old file is then still there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> OrchestratorError:
    """Return the error to raise when the operating system refused to write a file of a run."""
    return OrchestratorError(
        f"cannot write {path}: {error.strerror or error}",
        f"make room or make the folder writable, then type: orchestrator resume {path.parent}",
    )


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict ASCII JSON, which has no NaN: such floats become the strings `NaN`, `Infinity`, `-Infinity`."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} {value!r} cannot be stored as JSON")
