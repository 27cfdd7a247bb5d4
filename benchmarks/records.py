"""What a long benchmark has measured, a line of JSON a run: what was interrupted goes on, and nothing is done twice.

Several processes may write into one file, each its own runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read(file: Path | None) -> list[Record]:
    """Return the runs of a file; none where there is no file yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []


def found(file: Path | None, key: Mapping[str, Any]) -> Record | None:
    """Return the first run whose fields hold the key's values."""
    return next((run for run in read(file) if key.items() <= run.items()), None)


def once(file: Path | None, key: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> Record:
    """Return the run of a key: from the file, or measured, and then written to it.

    Args:
        file: None keeps nothing. key: values that JSON returns as they were. measure: the run's other fields.
    """
    known = found(file, key)
    if known is not None:
        return known
    made = {**key, **measure()}
    if file is not None:
        with file.open("a") as lines:
            lines.write(json.dumps(made) + "\n")
    return made
