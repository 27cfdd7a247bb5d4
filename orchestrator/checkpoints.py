"""Checkpoints of a run: complete or absent, checked when read, on any storage that Arrow can write to.

    step-000005/model.arrow       the model's tree
    step-000005/server.arrow      the server rule's state, as `slot/parameter`
    step-000005/checkpoint.json   step, clock, sizes and SHA-256 of the above; written last

A folder without a valid `checkpoint.json` is not a checkpoint: an interrupted write leaves nothing that could be
mistaken for one, also where folders cannot be renamed (object stores).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from orchestrator.engines.base import RunState
from orchestrator.errors import ConfigError, Problem, ResumeError
from strategies.federated.clock import Ticket
from trainers import wire

FORMAT = 1
_NAME = re.compile(r"^step-(\d{6,})$")


class CheckpointInfo(NamedTuple):
    """A checkpoint that was written: its step, its place and its size."""

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
            raise ConfigError(
                [Problem("config", "checkpoint.storage", f"cannot use {self.location!r}: {error}")]
            ) from error

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

    def save(self, state: RunState) -> CheckpointInfo:
        """Write the state as a checkpoint, then delete those before it beyond the newest `keep`."""
        folder = posixpath.join(self._root, f"step-{state.step:06d}")
        if self._fs.get_file_info(folder).type != fs.FileType.NotFound:
            self._fs.delete_dir(folder)  # left by a process that died, or by a run that went on past a resume
        self._fs.create_dir(folder, recursive=True)
        server = {f"{slot}/{name}": tensor for slot, tree in state.server.items() for name, tensor in tree.items()}
        files = {}
        for name, tree in (("model.arrow", state.model), ("server.arrow", server)):
            payload = wire.encode(tree)
            self._write(posixpath.join(folder, name), payload)
            files[name] = {"sha256": hashlib.sha256(payload).hexdigest(), "bytes": payload.size}
        marker = {
            "format": FORMAT,
            "step": state.step,
            "now_s": state.now_s.hex(),
            "started": state.started,
            "in_flight": [[t.finish_s.hex(), t.order, t.client, t.version, t.start_s.hex()] for t in state.in_flight],
            "files": files,
        }
        path = posixpath.join(folder, "checkpoint.json")
        self._write(path + ".tmp", json.dumps(marker, indent=1).encode())
        self._fs.move(path + ".tmp", path)
        # Later steps than this one are damaged ones that a resume passed over: they take no place of a whole one.
        for step in [step for step in self.steps() if step <= state.step][: -self._keep]:
            self._fs.delete_dir(posixpath.join(self._root, f"step-{step:06d}"))
        return CheckpointInfo(state.step, folder, sum(entry["bytes"] for entry in files.values()))

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
            marker = json.loads(self._read(posixpath.join(folder, "checkpoint.json")))
            if marker["format"] != FORMAT:
                raise ResumeError(f"checkpoint {folder} has format {marker['format']}, this version reads {FORMAT}")
            trees = {name: self._tree(folder, name, marker["files"][name]) for name in ("model.arrow", "server.arrow")}
            tickets = tuple(
                Ticket(float.fromhex(finish), order, client, version, float.fromhex(start))
                for finish, order, client, version, start in marker["in_flight"]
            )
            now_s, started = float.fromhex(marker["now_s"]), int(marker["started"])
        except (OSError, ValueError, KeyError, TypeError, wire.WireError) as error:
            raise ResumeError(f"checkpoint {folder} is damaged: {error}") from error
        server: dict[str, dict[str, Any]] = {}
        for key, tensor in trees["server.arrow"].items():
            slot, name = key.split("/", 1)
            server.setdefault(slot, {})[name] = tensor
        return RunState(step, trees["model.arrow"], server, now_s, started, tickets)

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
