"""States that ranks wrote by themselves, as the driver sees them: whole or not, and put together where that is asked.

Left out: how pieces lie in their files, which is in `trainers.shards`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyarrow import fs

from orchestrator.engines.base import RunState, ShardSet
from orchestrator.errors import ResumeError

if TYPE_CHECKING:
    from strategies.base import Tree

FIELDS = ("name", "num_bytes", "sha256")


def missing(storage: fs.FileSystem, folder: str, files: tuple[Mapping[str, Any], ...]) -> str:
    """Return which file of a folder is not there, or of another size than was reported; empty when all are.

    Args:
        folder: as the file system calls it.
    """
    for file in files:
        info = storage.get_file_info(posixpath.join(folder, file["name"]))
        if info.type != fs.FileType.File:
            return f"{file['name']} is missing"
        if info.size is not None and info.size != file["num_bytes"]:
            return f"{file['name']} has {info.size} bytes, {file['num_bytes']} were written"
    return ""


def described(files: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the files that a checkpoint's marker names.

    Raises:
        ValueError: when they are no files of pieces.
    """
    found = tuple({name: file[name] for name in FIELDS} for file in files)
    for file in found:
        if not isinstance(file["name"], str) or posixpath.basename(file["name"]) != file["name"] or not file["name"]:
            raise ValueError(f"{file['name']!r} is no file's name")
    return found


def verify(shards: ShardSet) -> None:
    """Read all files and compare them with what was written.

    Raises:
        ValueError: naming the first file that is missing or differs.
    """
    from trainers.shards import ShardError, ShardFile, check

    try:
        check(shards.folder, [ShardFile(**file) for file in shards.files])
    except ShardError as error:
        raise ValueError(str(error)) from error


def assembled(state: RunState) -> RunState:
    """Return the state with its tensors in memory, whole; one that is so already as it is.

    Raises:
        ResumeError: when a file is missing or damaged.
    """
    if state.shards is None:
        return state
    trees = trees_of(state.shards)
    return replace(state, model=trees.pop("model", {}), server=trees, shards=None)


def trees_of(shards: ShardSet, only: str | None = None) -> dict[str, Tree]:
    """Return the trees that files hold together, or one of them.

    Raises:
        ResumeError: when a file is missing or damaged.
    """
    from trainers.shards import ShardError, ShardFile, Shards

    try:
        found = Shards.open(shards.folder, [ShardFile(**file) for file in shards.files], verify=False)
        return {tree: found.whole(tree) for tree in found.trees if only in (None, tree)}
    except ShardError as error:
        raise ResumeError(f"the checkpoint in {shards.folder} is damaged: {error}") from error
