"""Checkpoints of a run: complete or absent, checked when read, on any storage that Arrow can write to.

    step-000005/model.arrow       the model's tree
    step-000005/server.arrow      the server rule's state, as `slot/parameter`
    step-000005/versions.arrow    earlier models that participations in flight began with, as `version/parameter`
    step-000005/tickets.arrow     those participations, a column a field
    step-000005/checkpoint.json   step, clock, sizes and SHA-256 of the above, segments below; written last
    clients/*.states              segments of clients' states, each shared by the checkpoints that name it

Where ranks write by themselves, `step-000005/shard-0-of-2.arrow` and its siblings stand in place of the trees, and the
marker, written when all of them are there, says what each is.

A folder without a valid `checkpoint.json` is not a checkpoint: an interrupted write leaves nothing that could be
mistaken for one, also where folders cannot be renamed (object stores).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from orchestrator import shard_sets
from orchestrator.client_segments import Segment, SegmentFolder
from orchestrator.client_store import ClientStore
from orchestrator.engines.base import RunState, ShardSet
from orchestrator.errors import ConfigError, Problem, ResumeError
from strategies.federated.clock import Clock, from_columns, to_columns
from trainers import wire
from trainers.shared_folder import MARK

FORMAT = 2
SHARDED = 3
"""The format of a checkpoint that ranks wrote; others are as they were."""
READABLE = (1, FORMAT, SHARDED)
"""Format 1, before client states and versions, had neither file nor field of them, and never a ticket."""
FILES = ("model.arrow", "server.arrow", "versions.arrow", "tickets.arrow")
_NAME = re.compile(r"^step-(\d{6,})$")


class CheckpointInfo(NamedTuple):
    """A checkpoint that was written: its step, its place and its size without clients' states."""

    step: int
    path: str
    num_bytes: int


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        location: a folder, or a URI that `pyarrow.fs` knows, such as `s3://bucket/run/checkpoints`.
        keep: how many of the newest stay.
    """

    def __init__(self, location: str | Path, keep: int) -> None:
        self.location = str(location)
        self._keep = keep
        try:
            if "://" in self.location:
                self._fs, self._root = fs.FileSystem.from_uri(self.location)
            else:
                self._fs, self._root = fs.LocalFileSystem(), str(Path(self.location).absolute())
        except (pa.ArrowException, OSError, ValueError) as error:
            path, told = "checkpoint.storage", f"cannot use {self.location!r}: {error}"
            hint = "a folder, or an object store such as s3://bucket/runs"
            raise ConfigError([Problem("config", path, told, hint)]) from error
        self._clients = SegmentFolder(self._fs, posixpath.join(self._root, "clients"))

    def probe(self) -> None:
        """Write, read and delete a marker, so that a storage error appears now and not after hours.

        Raises:
            ConfigError: when the storage cannot be written or read.
        """
        path = posixpath.join(self._root, f".probe-{os.getpid()}")
        try:
            self._fs.create_dir(self._root, recursive=True)
            self._write(path, b"marker")
            if self._read(path) != b"marker":
                raise OSError("the marker read back differs")
            self._fs.delete_file(path)
        except OSError as error:
            raise ConfigError(
                [
                    Problem(
                        "config",
                        "checkpoint.storage",
                        f"cannot write to {self.location!r}: {error}",
                        "give a folder or object-store URI you can write to",
                    )
                ]
            ) from error

    def save(self, state: RunState, clients: ClientStore | None = None) -> CheckpointInfo:
        """Write the state as a checkpoint, then delete those before it beyond the newest `keep`.

        Args:
            clients: what is remembered of clients as of the state; committed writes become part of the checkpoint.
        """
        segments = clients.seal(state.step) if clients is not None else []
        folder = posixpath.join(self._root, f"step-{state.step:06d}")
        files: Any = self._write_trees(folder, state) if state.shards is None else self._shards(folder, state.shards)
        marker = {
            "format": FORMAT if state.shards is None else SHARDED,
            "step": state.step,
            "now_s": state.clock.now_s.hex(),
            "started": state.clock.order,
            "files" if state.shards is None else "shards": files,
            "clients": [segment._asdict() for segment in segments],
        }
        path = posixpath.join(folder, "checkpoint.json")
        self._write(path + ".tmp", json.dumps(marker, indent=1).encode())
        self._fs.move(path + ".tmp", path)
        # Later steps than this one are damaged ones that a resume passed over: they take no place of a whole one.
        whole = [step for step in self.steps() if step <= state.step]
        for step in {*whole[: -self._keep], *self._left_over(whole, state.step)}:
            self._fs.delete_dir(posixpath.join(self._root, f"step-{step:06d}"))
        self._delete_unused_segments()
        num_bytes = sum(file["bytes"] for file in files.values()) if state.shards is None else _num_bytes(files)
        return CheckpointInfo(state.step, folder, num_bytes)

    def place(self, step: int | None = None) -> str:
        """Return the folder of a checkpoint, or of all, as a path or URI that other processes can open, too."""
        root = self.location if "://" in self.location else self._root
        return root if step is None else posixpath.join(root, f"step-{step:06d}")

    def mark(self) -> str | None:
        """Leave a word in the folder, by which ranks know that they see the same one; None where it is no path.

        Raises:
            OSError: when the storage cannot be written to.
        """
        if not isinstance(self._fs, fs.LocalFileSystem):
            return None
        word = secrets.token_hex(8)
        self._write(posixpath.join(self._root, MARK), word.encode())
        return word

    def _write_trees(self, folder: str, state: RunState) -> dict[str, dict[str, Any]]:
        if self._fs.get_file_info(folder).type != fs.FileType.NotFound:
            self._fs.delete_dir(folder)  # left by a process that died, or by a run that went on past a resume
        self._fs.create_dir(folder, recursive=True)
        server, versions = _flat(state.server), _flat(state.versions)
        files = {}
        trees = (state.model, server, versions, to_columns(state.clock.tickets))
        for name, tree in zip(FILES, trees, strict=True):
            payload = wire.encode(tree)
            self._write(posixpath.join(folder, name), payload)
            files[name] = {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": payload.size}
        return files

    def _shards(self, folder: str, shards: ShardSet) -> list[dict[str, Any]]:
        """Return what the marker says of files that ranks wrote, once all are there; others beside them go."""
        wrong = shard_sets.missing(self._fs, folder, shards.files)
        if wrong:
            message = f"the checkpoint that ranks wrote to {folder} is not whole: {wrong}"
            raise ResumeError(message, "checkpoint.storage must be a folder that all nodes share, or an object store")
        expected = {file["name"] for file in shards.files}
        for info in self._fs.get_file_info(fs.FileSelector(folder)):
            if info.type == fs.FileType.File and info.base_name not in expected:
                self._fs.delete_file(info.path)  # of a run that went on past a resume, with other ranks
        return [dict(file) for file in shards.files]

    def _left_over(self, whole: list[int], step: int) -> list[int]:
        """Return steps before this one whose ranks were lost before all had written."""
        found = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        begun = [int(match[1]) for info in found if (match := _NAME.match(info.base_name))]
        return [earlier for earlier in begun if earlier < step and earlier not in whole]

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        found = []
        for info in self._fs.get_file_info(selector):
            match = _NAME.match(info.base_name)
            marker = posixpath.join(info.path, "checkpoint.json")
            if match and self._fs.get_file_info(marker).type == fs.FileType.File:
                found.append(int(match[1]))
        return sorted(found)

    def load(self, step: int) -> RunState:
        """Read one checkpoint.

        Raises:
            ResumeError: when it is missing, damaged or of another format.
        """
        folder = posixpath.join(self._root, f"step-{step:06d}")
        try:
            marker = self._marker(step)
            if "shards" in marker:
                shards = ShardSet(self.place(step), shard_sets.described(marker["shards"]))
                shard_sets.verify(shards)
                return RunState(step, None, {}, Clock.of(float.fromhex(marker["now_s"]), 0, ()), shards=shards)
            trees = {name: self._tree(folder, name, marker["files"][name]) for name in FILES if name in marker["files"]}
            tickets = from_columns(trees["tickets.arrow"]) if "tickets.arrow" in trees else ()
            clock = Clock.of(float.fromhex(marker["now_s"]), int(marker["started"]), tickets)
            versions = {int(version): tree for version, tree in _nested(trees.get("versions.arrow", {})).items()}
            self._clients.entries(_segments(marker))  # that they are whole
        except (OSError, ValueError, KeyError, TypeError, wire.WireError) as error:
            raise ResumeError(f"checkpoint {folder} is damaged: {error}") from error
        except ResumeError as error:
            raise ResumeError(f"checkpoint {folder} cannot be used: {error.message}", error.hint) from error
        return RunState(step, trees["model.arrow"], _nested(trees["server.arrow"]), clock, versions)

    def client_store(
        self, scratch: Path, step: int | None = None, source: CheckpointStore | None = None
    ) -> ClientStore:
        """Return what is remembered of clients as of a checkpoint; nothing without one.

        Args:
            scratch: the folder for what is written until the next checkpoint, on this machine.
            source: where the checkpoint is, if not here; its client states are then copied here.

        Raises:
            ResumeError: when the checkpoint or a segment it names is damaged.
        """
        clients = ClientStore(self._clients, scratch)
        if step is not None:
            source = source or self
            try:
                segments = _segments(source._marker(step))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ResumeError(f"checkpoint {source.location}/step-{step:06d} is damaged: {error}") from error
            clients.restore(segments, source._clients)
        return clients

    def newest(self, notify: Callable[[str], None] = lambda message: None) -> RunState | None:
        """Read the newest checkpoint that is whole, saying which newer ones were damaged; `None` without any.

        Raises:
            ResumeError: when there are checkpoints, and every one of them is damaged.
        """
        steps, damaged = self.steps(), []
        for step in reversed(steps):
            try:
                return self.load(step)
            except ResumeError as error:
                notify(f"{error.message}; trying the one before")
                damaged.append(error.message)
        if damaged:
            raise ResumeError(
                f"no whole checkpoint in {self.location}:\n  " + "\n  ".join(damaged),
                "start the run again: orchestrator run RUN_DIR/config.resolved.yaml",
            )
        return None

    def _marker(self, step: int) -> dict[str, Any]:
        path = posixpath.join(self._root, f"step-{step:06d}", "checkpoint.json")
        marker: dict[str, Any] = json.loads(self._read(path))
        if marker["format"] not in READABLE:
            told = f"{path} has format {marker['format']}, this version reads {FORMAT} and below"
            raise ResumeError(told, "use the version of orchestrator that wrote it; see versions in manifest.json")
        return marker

    def _delete_unused_segments(self) -> None:
        used: set[str] = set()
        for step in self.steps():
            try:
                used |= {segment.name for segment in _segments(self._marker(step))}
            except OSError:
                return  # what it needs is not known: they are looked through again at the next checkpoint
            except (ValueError, KeyError, TypeError, ResumeError):
                continue  # a damaged checkpoint, which needs nothing any more
        self._clients.delete_others(used)

    def _tree(self, folder: str, name: str, entry: dict[str, Any]) -> dict[str, Any]:
        payload = self._read(posixpath.join(folder, name))
        if len(payload) != entry["bytes"] or hashlib.sha256(payload).hexdigest() != entry["sha256"]:
            raise ValueError(f"{name} does not match its checksum")
        return wire.decode(payload)

    def _write(self, path: str, payload: Any) -> None:
        with self._fs.open_output_stream(path) as stream:
            stream.write(payload)
        if isinstance(self._fs, fs.LocalFileSystem):
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return bytes(stream.read())


def _num_bytes(files: list[dict[str, Any]]) -> int:
    return sum(file["num_bytes"] for file in files)


def _flat(trees: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{key}/{name}": tensor for key, tree in trees.items() for name, tensor in tree.items()}


def _nested(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    trees: dict[str, dict[str, Any]] = {}
    for path, tensor in flat.items():
        key, name = path.split("/", 1)
        trees.setdefault(key, {})[name] = tensor
    return trees


def _segments(marker: Mapping[str, Any]) -> list[Segment]:
    return [Segment(**fields) for fields in marker.get("clients", [])]
