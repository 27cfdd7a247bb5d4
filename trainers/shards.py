"""Named pieces of flattened tensors in files: ranks write their own, and any number of them reads what others wrote.

A tensor is named by a tree and a name, as everywhere: `model` and `blocks.0.norm.weight`, `optimizer.exp_avg` and the
same. A piece is a run of its elements in row-major order, so how a tensor was cut says nothing about how it is read.

    NAME.arrow    an Arrow IPC file: its schema's note lists the pieces, and record batch i holds the bytes of piece i

Files are written whole and then renamed, on storage where that can be done; who writes remembers their sizes and
checksums (`ShardFile`), and who reads is told them. Reading executes nothing that it reads. Left out: which files make
a checkpoint, which is the driver's to say.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from pyarrow import fs
from torch import Tensor

from trainers.wire import DTYPE_NAMES, DTYPES

_NOTE = b"pieces"
_SCHEMA = pa.schema([pa.field("values", pa.large_binary(), nullable=False)])
_CHUNK_BYTES = 1 << 22


class ShardError(Exception):
    """A file of pieces is missing, damaged or not one, or pieces do not make up a tensor; says which."""


class Piece(NamedTuple):
    """Elements `[start, start + len(values))` of the flattened tensor `name` of `tree`.

    Args:
        shape: of the whole tensor. values: 1-D, on any device.
    """

    tree: str
    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


class ShardFile(NamedTuple):
    """A file that was written: its name in its folder, its size and its SHA-256."""

    name: str
    num_bytes: int
    sha256: str


def write(folder: str, name: str, pieces: Iterable[Piece]) -> ShardFile:
    """Write pieces as a file, which is there whole or not at all.

    Args:
        folder: on this machine, or a URI that `pyarrow.fs` knows; made if need be.

    Raises:
        ShardError: when a piece does not lie in its tensor, or has a dtype that files cannot carry.
        OSError: from the storage.
    """
    held = list(pieces)
    note = json.dumps([_noted(piece) for piece in held], separators=(",", ":"))
    storage, root = _storage(folder)
    storage.create_dir(root, recursive=True)
    path = posixpath.join(root, name)
    local = isinstance(storage, fs.LocalFileSystem)
    with storage.open_output_stream(path + ".tmp" if local else path) as stream:
        counted = _Counted(stream)
        sink = pa.PythonFile(counted, mode="w")
        with pa.ipc.new_file(sink, _SCHEMA.with_metadata({_NOTE: note})) as writer:
            for piece in held:
                writer.write_batch(_batch(piece.values))
    if local:
        with open(path + ".tmp", "rb") as file:
            os.fsync(file.fileno())
        os.replace(path + ".tmp", path)
    return ShardFile(name, counted.num_bytes, counted.hash.hexdigest())


def check(folder: str, files: Iterable[ShardFile]) -> None:
    """Read files and compare them with what was written.

    Raises:
        ShardError: naming the first file that is missing, or differs.
    """
    storage, root = _storage(folder)
    for file in files:
        path = posixpath.join(root, file.name)
        seen, num_bytes = hashlib.sha256(), 0
        try:
            with storage.open_input_stream(path) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    seen.update(chunk)
                    num_bytes += len(chunk)
        except OSError as error:
            raise ShardError(f"{path} cannot be read: {error}") from error
        if num_bytes != file.num_bytes:
            raise ShardError(f"{path} has {num_bytes} bytes, {file.num_bytes} were written")
        if seen.hexdigest() != file.sha256:
            raise ShardError(f"{path} does not match its checksum")


class _Part(NamedTuple):
    """Where a piece lies: batch `index` of a file."""

    start: int
    length: int
    file: int
    index: int


class _Whole(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: list[_Part]


class Shards:
    """The tensors that some files hold together; made by `open`."""

    def __init__(self, paths: Sequence[str], readers: Sequence[Any], index: dict[str, dict[str, _Whole]]) -> None:
        self._paths, self._readers, self._index = paths, readers, index

    @classmethod
    def open(cls, folder: str, files: Sequence[ShardFile], verify: bool = True) -> Shards:
        """Look what files hold; what is not asked for is not read, other than to verify it.

        Args:
            verify: compare whole files with their checksums, see `check`; sizes are compared in any case.

        Raises:
            ShardError: when a file is missing or damaged, or pieces of two files contradict each other.
        """
        if verify:
            check(folder, files)
        storage, root = _storage(folder)
        paths = [posixpath.join(root, file.name) for file in files]
        readers, index = [], dict[str, dict[str, _Whole]]()
        for number, (path, file) in enumerate(zip(paths, files, strict=True)):
            reader, notes = _opened(storage, path, file)
            readers.append(reader)
            for batch, note in enumerate(notes):
                _enter(index, path, note, number, batch)
        for tree, tensors in index.items():
            for name, whole in tensors.items():
                _insist_whole(tree, name, whole)
        return cls(paths, readers, index)

    @property
    def trees(self) -> list[str]:
        """The trees' names."""
        return list(self._index)

    def names(self, tree: str) -> list[str]:
        """Return the names of a tree's tensors; none for a tree that is not there."""
        return list(self._index.get(tree, {}))

    def shape(self, tree: str, name: str) -> tuple[int, ...]:
        """Return the shape of a whole tensor."""
        return self._of(tree, name).shape

    def read(self, tree: str, name: str, start: int = 0, length: int | None = None) -> Tensor:
        """Return elements of a flattened tensor, in memory of their own.

        Args:
            length: how many; all from `start` on when not given.

        Raises:
            ShardError: when there is no such tensor, or it has no such elements, or a file is damaged.

        Shapes: result `[length]`.
        """
        whole = self._of(tree, name)
        numel = math.prod(whole.shape)
        stop = numel if length is None else start + length
        if not 0 <= start <= stop <= numel:
            raise ShardError(f"{tree} {name} has {numel} elements, asked for [{start}, {stop})")
        result = torch.empty(stop - start, dtype=whole.dtype)
        first = max(0, bisect.bisect_right(whole.parts, start, key=lambda part: part.start) - 1)
        for part in whole.parts[first:]:
            if part.start >= stop:
                break
            low, high = max(start, part.start), min(stop, part.start + part.length)
            if low < high:
                result[low - start : high - start] = self._values(part, whole.dtype)[
                    low - part.start : high - part.start
                ]
        return result

    def whole(self, tree: str) -> dict[str, Tensor]:
        """Return a tree; empty for one that is not there."""
        return {name: self.read(tree, name).view(self.shape(tree, name)) for name in self.names(tree)}

    def _of(self, tree: str, name: str) -> _Whole:
        try:
            return self._index[tree][name]
        except KeyError:
            raise ShardError(f"no {name} in {tree} of {', '.join(self._paths) or 'no files'}") from None

    def _values(self, part: _Part, dtype: torch.dtype) -> Tensor:
        path = self._paths[part.file]
        try:
            values = self._readers[part.file].get_batch(part.index).column(0)
            values.validate(full=True)
        except (pa.ArrowException, OSError, IndexError) as error:
            raise ShardError(f"{path} is damaged: {error}") from error
        needed = part.length * dtype.itemsize
        raw = values[0].as_buffer() if len(values) == 1 else None
        if raw is None or raw.size != needed:
            raise ShardError(f"{path} is damaged: piece {part.index} needs {needed} bytes")
        if not needed:
            return torch.empty(0, dtype=dtype)
        aligned = raw if raw.address % 8 == 0 else pa.py_buffer(raw.to_pybytes())
        return torch.from_dlpack(pa.Array.from_buffers(pa.uint8(), needed, [None, aligned])).view(dtype)


# ------------------------------------------------------------------------------------------------------- writing


class _Counted:
    """A file for Arrow to write to that counts and hashes what passes."""

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.num_bytes = 0
        self.hash = hashlib.sha256()

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._stream.write(data)
        self.hash.update(data)
        self.num_bytes += size
        return size

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self.closed = True


def _noted(piece: Piece) -> list[Any]:
    dtype, length = piece.values.dtype, piece.values.numel()
    if dtype not in DTYPE_NAMES:
        raise ShardError(f"{piece.tree} {piece.name} has dtype {dtype}; files carry {', '.join(DTYPES)}")
    numel = math.prod(piece.shape)
    if piece.values.dim() != 1 or not 0 <= piece.start <= piece.start + length <= numel:
        where = f"[{piece.start}, {piece.start + length})"
        raise ShardError(f"{piece.tree} {piece.name} has {numel} elements, a piece of it is {where}")
    return [piece.tree, piece.name, DTYPE_NAMES[dtype], list(piece.shape), piece.start, length]


def _batch(values: Tensor) -> pa.RecordBatch:
    raw = values.detach().to("cpu").contiguous().view(torch.uint8).numpy()
    offsets = pa.py_buffer(torch.tensor([0, len(raw)]).numpy())
    column = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(raw)])
    return pa.RecordBatch.from_arrays([column], schema=_SCHEMA)


# ------------------------------------------------------------------------------------------------------- reading


def _storage(folder: str) -> tuple[fs.FileSystem, str]:
    if "://" in folder:
        return fs.FileSystem.from_uri(folder)  # type: ignore[no-any-return]
    return fs.LocalFileSystem(), str(Path(folder).absolute())


def _opened(storage: fs.FileSystem, path: str, file: ShardFile) -> tuple[Any, list[Any]]:
    """Return a file's reader and its list of pieces."""
    try:
        info = storage.get_file_info(path)
        if info.type == fs.FileType.File and info.size not in (None, file.num_bytes):
            raise ShardError(f"{path} has {info.size} bytes, {file.num_bytes} were written")
        local = isinstance(storage, fs.LocalFileSystem)
        reader = pa.ipc.open_file(pa.memory_map(path) if local else storage.open_input_file(path))
        notes = json.loads((reader.schema.metadata or {})[_NOTE])
        if len(notes) != reader.num_record_batches:
            raise ShardError(f"{path} is damaged: it lists {len(notes)} pieces and has {reader.num_record_batches}")
        return reader, notes
    except FileNotFoundError as error:
        raise ShardError(f"{path} is missing") from error
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ShardError(f"{path} is damaged: {error}") from error


def _enter(index: dict[str, dict[str, _Whole]], path: str, note: Any, file: int, batch: int) -> None:
    try:
        tree, name, kind, sizes, start, length = note
        shape, dtype = tuple(sizes), DTYPES[kind]
        if not all(type(number) is int and number >= 0 for number in (*shape, start, length)):
            raise ValueError("negative sizes")
        whole = index.setdefault(tree, {}).setdefault(name, _Whole(shape, dtype, []))
    except (KeyError, ValueError, TypeError) as error:
        raise ShardError(f"{path} is damaged: piece {batch} is {note!r}") from error
    if whole.shape != shape or whole.dtype != dtype:
        was, now = f"{whole.dtype} {list(whole.shape)}", f"{dtype} {list(shape)}"
        raise ShardError(f"{path} holds {tree} {name} as {now}, another piece of it is {was}")
    whole.parts.append(_Part(start, length, file, batch))


def _insist_whole(tree: str, name: str, whole: _Whole) -> None:
    whole.parts.sort()
    end = 0
    for part in whole.parts:
        if part.start > end:
            raise ShardError(f"{tree} {name}: no file holds elements [{end}, {part.start})")
        if part.start < end and part.length:
            raise ShardError(f"{tree} {name}: two pieces hold element {part.start}")
        end = part.start + part.length
    if end != math.prod(whole.shape):
        raise ShardError(f"{tree} {name}: no file holds elements [{end}, {math.prod(whole.shape)})")


def pieces_of(tree: str, tensors: Iterable[tuple[str, Tensor]], part: int, parts: int) -> Iterator[Piece]:
    """Yield part `part` of `parts` of tensors that every rank has, so that together the ranks write each once."""
    for name, tensor in tensors:
        numel = tensor.numel()
        start, stop = numel * part // parts, numel * (part + 1) // parts
        if start < stop or (part == 0 and not numel):
            yield Piece(tree, name, tuple(tensor.shape), start, tensor.detach().reshape(-1)[start:stop])
