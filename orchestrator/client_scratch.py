"""Client states written since the last checkpoint: a nameless file of the run directory that ends with the process.

Nothing in it is needed again: a run that is killed goes on from its last checkpoint, which has its own files. The file
has no name, so whatever ends the process leaves nothing behind. It only grows: a state that is replaced stays where it
was until the store starts a new file.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa

from orchestrator.errors import OrchestratorError

ALIGNMENT = 8
"""Every state begins at a multiple of this, so that tensors in it can be used in place."""

_NO_RESERVE = 0x4000 if os.uname().sysname == "Linux" else 0  # only pages that are written to take memory


def aligned(position: int) -> int:
    """Return the next place at which a state may begin."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def mapped(descriptor: int, num_bytes: int) -> pa.Buffer:
    """Return the beginning of a file without reading it; what is written to the buffer stays in this process."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    return pa.py_buffer(mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=protection))


class Scratch:
    """The file. It is made at the first `append`.

    Args:
        folder: where it lies. end: bytes so far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.end = 0
        self._file: IO[bytes] | None = None

    def append(self, payloads: Sequence[pa.Buffer | bytes | memoryview]) -> list[tuple[int, int]]:
        """Write payloads, all or none, and return offset and length of each.

        Raises:
            OrchestratorError: when the disk is full.
        """
        position, spans = self.end, []
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
            for payload in payloads:
                view = memoryview(payload).cast("B")
                position = aligned(position) if view else position  # the end is where something was written last
                spans.append((position, len(view)))
                while view:
                    written = os.pwrite(self._file.fileno(), view, position)
                    view, position = view[written:], position + written
        except OSError as error:
            if self._file is not None:
                os.ftruncate(self._file.fileno(), self.end)  # nothing behind the end was ever handed out
            raise OrchestratorError(
                f"cannot write the states of {len(payloads)} clients in {self.folder}: {error.strerror or error}",
                f"make room or make the folder writable, then type: orchestrator resume {self.folder}",
            ) from error
        self.end = position
        return spans

    def view(self) -> pa.Buffer:
        """Return all of it as a buffer, which stays valid whatever becomes of the file."""
        return pa.py_buffer(b"") if self._file is None or not self.end else mapped(self._file.fileno(), self.end)

    def close(self) -> None:
        """Give the file up; buffers that were handed out stay valid."""
        if self._file is not None:
            self._file.close()
        self._file, self.end = None, 0
