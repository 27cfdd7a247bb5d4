"""Before ranks write to a folder: whether they see the one that the driver sees, and not one of the same name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from pyarrow import fs

from trainers.loop import Context

MARK = ".seen-by-all"
"""A file in the folder, with a word that only the driver and its ranks know."""


class NotShared(Exception):
    """A folder of checkpoints is not the same on every node."""


def run(context: Context, *, program: str, folder: str, word: str | None, **settings: Any) -> None:
    """Call a gang's program, `package.module:function`, once this rank has found the driver's mark in the folder.

    Args:
        word: that the mark holds; None where the folder is in an object store, and so the same everywhere.

    Raises:
        NotShared: when it is not there.
    """
    if word is not None:
        mark = Path(fs.FileSystem.from_uri(folder)[1] if "://" in folder else folder) / MARK
        try:
            found = mark.read_text()
        except OSError as error:
            found = f"nothing ({error.strerror})"
        if found != word:
            raise NotShared(
                f"rank {context.rank} does not see the checkpoints in {folder}: expected the driver's mark in "
                f"{mark.name}, found {found}. All nodes must share that folder; give checkpoint.storage a folder that "
                "they share, or an object store such as s3://bucket/runs"
            )
    module, _, name = program.partition(":")
    getattr(importlib.import_module(module), name)(context, folder=folder, **settings)
