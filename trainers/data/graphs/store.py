"""A graph as a folder of plain arrays, which every worker of a machine maps instead of being sent a copy.

A folder is whole or absent: it is written beside its place and renamed, and its facts hold a digest of every file, so
that one that was cut off or changed is refused rather than trained on. What is left out: which folder a graph belongs
in, and deleting old ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.base import DataError
from trainers.data.graphs.base import ARRAYS, GraphData

FORMAT = 1
_FACTS = "facts.json"


def write(folder: Path, data: GraphData) -> str:
    """Write a graph into a folder that appears whole or not at all, and return its digest.

    A folder that holds the same graph already is left as it is; another graph, or a damaged folder, is replaced.

    Raises:
        DataError: when the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            facts = _write(partial / "new", data)
            if not _holds(folder, facts["digest"]):
                _swap(partial, folder, facts["digest"])
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"the graph folder {folder} cannot be written: {error.strerror or error}",
            "choose a folder that can be written and has enough space",
        ) from error
    return str(facts["digest"])


def open_store(folder: Path, *, verify: bool = True) -> GraphData:
    """Return the graph of a folder, its arrays mapped and read-only.

    Args:
        verify: read every file once and hold it against its digest; without it only its length is.

    Raises:
        DataError: when the folder is missing, cut off, changed, or of another format.
    """
    facts = _read_facts(folder)
    try:
        arrays = {name: _mapped(folder, name, facts["files"][name], verify) for name in ARRAYS}
        names = facts["class_names"]
        return GraphData(
            name=facts["name"],
            **arrays,
            num_classes=facts["num_classes"],
            class_names=None if names is None else tuple(names),
            notes=tuple(facts["notes"]),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from error


def _write(folder: Path, data: GraphData) -> dict[str, Any]:
    folder.mkdir()
    files = {}
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        np.save(path, np.ascontiguousarray(getattr(data, name)), allow_pickle=False)
        files[name] = {"bytes": path.stat().st_size, "sha256": _digest_of(path)}
    facts: dict[str, Any] = {
        "format": FORMAT,
        "name": data.name,
        "num_vertices": data.num_vertices,
        "num_edges": data.num_edges,
        "num_features": data.num_features,
        "num_classes": data.num_classes,
        "class_names": None if data.class_names is None else list(data.class_names),
        "notes": list(data.notes),
        "files": files,
    }
    facts["digest"] = _digest(facts)
    (folder / _FACTS).write_text(json.dumps(facts, indent=1))
    return facts


def _swap(partial: Path, folder: Path, digest: str) -> None:
    """Put the new folder in its place; of processes that do so at once, each wrote the same or the last one stays."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, partial / "old")
    try:
        os.replace(partial / "new", folder)
    except OSError:
        if not _holds(folder, digest):
            raise


def _holds(folder: Path, digest: str) -> bool:
    try:
        open_store(folder)
        return bool(_read_facts(folder)["digest"] == digest)
    except DataError:
        return False


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / _FACTS).read_text())
        if facts["format"] != FORMAT:
            raise DataError(f"{folder} is a graph of format {facts['format']}, expected {FORMAT}", "write it again")
        if facts["digest"] != _digest(facts):
            raise _damaged(folder, f"{_FACTS} was changed")
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no whole graph: {_FACTS} is missing", "write it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{_FACTS}: {error}") from error
    return dict(facts)


def _mapped(folder: Path, name: str, facts: dict[str, Any], verify: bool) -> np.ndarray:
    path = folder / f"{name}.npy"
    found = path.stat().st_size
    if found != facts["bytes"]:
        raise ValueError(f"{path.name} has {found:,} bytes, expected {facts['bytes']:,}")
    if verify and _digest_of(path) != facts["sha256"]:
        raise ValueError(f"{path.name} was changed")
    # A plain array over the mapped pages: Ray ships np.memmap, a subclass, by copying it into the message.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _digest_of(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _digest(facts: dict[str, Any]) -> str:
    whole = {key: value for key, value in facts.items() if key != "digest"}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(f"the graph in {folder} is damaged: {why}", "delete the folder, and it is written again")
