"""Segments: immutable files of client states beside the checkpoints that refer to them.

    clients/000005-3fa9c1d2.states     states one behind the other, then their index as an Arrow table

A segment is written once, front to back, and deleted when no kept checkpoint refers to it, which every storage that
Arrow knows can do. A checkpoint names its segments with size and with the SHA-256 of the index; each state's CRC-32
is in the index and is checked whenever the state is read, so that a resume need not read all states of all clients.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs

from orchestrator.client_index import ENTRY
from orchestrator.client_scratch import aligned, mapped
from orchestrator.errors import OrchestratorError, ResumeError

CACHE_BYTES = 256 << 20
"""States from a remote storage that are kept in memory, the ones used last."""

_Place = tuple[str, int, int]  # segment, offset, length
_COLUMNS = ("client", "offset", "length", "checksum")
_REQUESTS = 16
_BUFFER_BYTES = 1 << 20


class Segment(NamedTuple):
    """What a checkpoint notes of a segment. The index is its last `index_bytes`."""

    name: str
    num_bytes: int
    index_bytes: int
    index_sha256: str


class SegmentFolder:
    """The segments of one run.

    Args:
        filesystem, root: where they lie.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str) -> None:
        self._fs, self.root = filesystem, root
        self._local = isinstance(filesystem, fs.LocalFileSystem)
        self._cache: OrderedDict[_Place, pa.Buffer] = OrderedDict()
        self._cached_bytes = 0

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    # ---------------------------------------------------------------------------------------------------- writing

    def write(self, step: int, states: Iterable[tuple[int, pa.Buffer]]) -> tuple[Segment, np.ndarray]:
        """Write clients' states as a new segment; return it with their entries, whose `file` is left 0.

        Raises:
            OrchestratorError: when the storage cannot be written; then there is no such segment.
        """
        name = f"{step:06d}-{secrets.token_hex(4)}.states"
        path, rows, position = self.path(name), [], 0
        try:
            self._fs.create_dir(self.root, recursive=True)
            with self._fs.open_output_stream(path, buffer_size=_BUFFER_BYTES) as stream:
                for client, state in states:
                    gap = aligned(position) - position
                    if gap:
                        stream.write(bytes(gap))
                    rows.append((client, position + gap, state.size, 0, zlib.crc32(state)))
                    stream.write(state)
                    position += gap + state.size
                entries = np.array(rows, ENTRY)
                index = _encode(entries)
                stream.write(index)
            if self._local:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._fs.delete_file(path)
            raise OrchestratorError(
                f"cannot write client states to {path}: {error}",
                "make room or make the storage writable, then go on with: orchestrator resume RUN_DIR",
            ) from error
        return Segment(name, position + index.size, index.size, hashlib.sha256(index).hexdigest()), entries

    def copy(self, source: SegmentFolder, segments: Iterable[Segment]) -> None:
        """Copy another run's segments into this folder.

        Raises:
            ResumeError: when one cannot be read or written whole.
        """
        for segment in segments:
            try:
                self._fs.create_dir(self.root, recursive=True)
                fs.copy_files(
                    source.path(segment.name), self.path(segment.name),
                    source_filesystem=source._fs, destination_filesystem=self._fs,
                )  # fmt: skip
            except OSError as error:
                raise ResumeError(f"cannot copy {source.path(segment.name)} to {self.root}: {error}") from error

    def delete_others(self, names: set[str]) -> None:
        """Delete every segment that is not named."""
        for info in self._fs.get_file_info(fs.FileSelector(self.root, allow_not_found=True)):
            if info.base_name.endswith(".states") and info.base_name not in names:
                self._fs.delete_file(info.path)

    # ---------------------------------------------------------------------------------------------------- reading

    def entries(self, segments: Sequence[Segment]) -> list[np.ndarray]:
        """Return the entries of each segment, whose `file` is 0.

        Raises:
            ResumeError: when one is missing, has another size, or its index does not match its checksum.
        """
        if self._local or not segments:
            return [self._entries(segment) for segment in segments]
        with ThreadPoolExecutor(min(_REQUESTS, len(segments))) as pool:
            return list(pool.map(self._entries, segments))

    def _entries(self, segment: Segment) -> np.ndarray:
        path = self.path(segment.name)
        try:
            with self._fs.open_input_file(path) as file:
                if file.size() != segment.num_bytes:
                    raise ValueError(f"it has {file.size()} bytes, the checkpoint says {segment.num_bytes}")
                index = file.read_at(segment.index_bytes, segment.num_bytes - segment.index_bytes)
            if hashlib.sha256(index).hexdigest() != segment.index_sha256:
                raise ValueError("its index does not match its checksum")
            return _decode(index)
        except (OSError, ValueError) as error:
            raise ResumeError(f"client states {path} are damaged: {error}") from error

    def read(self, parts: Sequence[tuple[str, np.ndarray]]) -> list[list[pa.Buffer]]:
        """Return states of some segments, in the order of their entries; from local files without copying.

        Args:
            parts: names of segments, with the entries that are wanted of each.

        Raises:
            ResumeError: when one cannot be read or does not match its checksum.
        """
        fetched = {} if self._local else self._fetched(parts)
        found = []
        for name, entries in parts:
            if self._local:
                states = self._mapped(name, entries)
            else:
                states = [fetched[place] for place in _places(name, entries)]
            for place, (state, checksum) in enumerate(zip(states, entries["checksum"].tolist(), strict=True)):
                if zlib.crc32(state) != checksum:
                    client = entries["client"][place]
                    raise self._damaged(name, f"the state of client {client} does not match its checksum")
            found.append(states)
        return found

    def _damaged(self, name: str, reason: object) -> ResumeError:
        hint = "remove the newest step-* folders that need it, if an older one does not: orchestrator resume RUN_DIR"
        return ResumeError(f"client states {self.path(name)} are damaged: {reason}", hint)

    def _mapped(self, name: str, entries: np.ndarray) -> list[pa.Buffer]:
        try:
            with open(self.path(name), "rb") as file:
                whole = mapped(file.fileno(), os.fstat(file.fileno()).st_size)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise self._damaged(name, error) from error
        if (entries["offset"] + entries["length"]).max() > whole.size:
            raise self._damaged(name, f"it has only {whole.size} bytes")
        return [whole.slice(offset, length) for _, offset, length in _places(name, entries)]

    def _fetched(self, parts: Sequence[tuple[str, np.ndarray]]) -> dict[_Place, pa.Buffer]:
        """Return the states from memory, or with some requests at a time from the storage."""
        wanted = dict.fromkeys(place for name, entries in parts for place in _places(name, entries))
        states = {place: self._cache.pop(place) for place in wanted if place in self._cache}
        missing = [place for place in wanted if place not in states]

        def opened(name: str) -> pa.NativeFile:
            try:
                return self._fs.open_input_file(self.path(name))
            except OSError as error:
                raise self._damaged(name, error) from error

        def fetch(place: _Place) -> pa.Buffer:
            name, offset, length = place
            try:
                state = pa.py_buffer(files[name].read_at(length, offset))
            except OSError as error:
                raise self._damaged(name, error) from error
            if state.size != length:
                raise self._damaged(name, f"it ends within {length} bytes at {offset}")
            return state

        if missing:
            names = list(dict.fromkeys(name for name, _, _ in missing))
            with ThreadPoolExecutor(min(_REQUESTS, len(missing))) as pool, ExitStack() as stack:
                files = {
                    name: stack.enter_context(file) for name, file in zip(names, pool.map(opened, names), strict=True)
                }
                states.update(zip(missing, pool.map(fetch, missing), strict=True))
        self._cached_bytes += sum(states[place].size for place in missing)
        self._cache.update(states)
        while self._cached_bytes > CACHE_BYTES:
            self._cached_bytes -= self._cache.popitem(last=False)[1].size
        return states


def _places(name: str, entries: np.ndarray) -> list[_Place]:
    return [(name, *span) for span in zip(entries["offset"].tolist(), entries["length"].tolist(), strict=True)]


def _encode(entries: np.ndarray) -> pa.Buffer:
    table = pa.table({name: np.ascontiguousarray(entries[name]) for name in _COLUMNS})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _decode(index: bytes) -> np.ndarray:
    with pa.ipc.open_stream(index) as reader:
        table = reader.read_all()
    entries = np.zeros(table.num_rows, ENTRY)
    for name in _COLUMNS:
        entries[name] = table.column(name).to_numpy()
    return entries
