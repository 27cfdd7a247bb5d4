"""What a run remembers of its clients: compact, as of a checkpoint, and whole or told to be damaged."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from orchestrator import client_segments, client_store
from orchestrator.checkpoints import CheckpointStore
from orchestrator.client_index import ENTRY, ClientIndex
from orchestrator.client_segments import SegmentFolder
from orchestrator.client_store import ClientStore
from orchestrator.engines.base import RunState
from orchestrator.errors import OrchestratorError, ResumeError


def state(step: int) -> RunState:
    return RunState(step, {"w": torch.zeros(1)}, {})


def saved(store: CheckpointStore, clients: ClientStore, step: int, states: dict[int, bytes]) -> None:
    clients.write(states)
    clients.commit()
    store.save(state(step), clients)


def read(clients: ClientStore, *asked: int) -> list[bytes | None]:
    return [None if found is None else bytes(found) for found in clients.read(asked)]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


@pytest.fixture
def clients(store: CheckpointStore, tmp_path: Path) -> Iterator[ClientStore]:
    clients = store.client_store(tmp_path)
    yield clients
    clients.close()


def segments(store: CheckpointStore) -> list[Path]:
    return sorted(Path(store.location, "clients").glob("*"))


def test_a_checkpoint_holds_the_states_as_of_its_step(
    store: CheckpointStore, clients: ClientStore, tmp_path: Path
) -> None:
    assert read(clients, 0, 10**12) == [None, None]
    saved(store, clients, 1, {4: b"four", 10**12: b""})
    saved(store, clients, 2, {4: b"FOUR", 5: b"five"})
    clients.write({4: b"later"})
    clients.commit()
    assert read(clients, 5, 4, 10**12, 6, 4) == [b"five", b"later", b"", None, b"later"]
    assert read(store.client_store(tmp_path, 1), 4, 5, 10**12) == [b"four", None, b""]
    assert read(store.client_store(tmp_path, 2), 4, 5, 10**12) == [b"FOUR", b"five", b""]


def test_what_is_not_committed_is_seen_but_not_saved(
    store: CheckpointStore, clients: ClientStore, tmp_path: Path
) -> None:
    clients.write({1: b"one"})
    clients.commit()
    clients.write({1: b"thrown away", 2: b"too"})
    assert read(clients, 1, 2) == [b"thrown away", b"too"] and len(clients) == 2
    store.save(state(1), clients)
    assert read(clients, 1, 2) == [b"thrown away", b"too"]
    assert read(store.client_store(tmp_path, 1), 1, 2) == [b"one", None]


def test_a_run_without_client_states_has_no_files_of_them(
    store: CheckpointStore, clients: ClientStore, tmp_path: Path
) -> None:
    clients.commit()
    store.save(state(1), clients)
    assert segments(store) == [] and [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_segments_that_no_kept_checkpoint_names_are_deleted_and_half_dead_ones_are_moved(
    store: CheckpointStore, clients: ClientStore
) -> None:
    payload = os.urandom(10_000)
    for step in range(1, 22):
        saved(store, clients, step, dict.fromkeys(range(step % 3, 30, 3), payload) | {100: bytes([step])})
        assert len(segments(store)) <= 8
        assert sum(path.stat().st_size for path in segments(store)) < 6 * 30 * len(payload)
    assert read(clients, 7, 100) == [payload, bytes([21])]


def test_many_small_segments_become_one(store: CheckpointStore, clients: ClientStore) -> None:
    most = 0
    for step in range(1, 40):
        saved(store, clients, step, {step: b"%d" % step})
        most = max(most, len(segments(store)))
    assert most <= 2 * client_store._MOST_SMALL
    assert read(clients, *range(1, 40)) == [b"%d" % step for step in range(1, 40)]


def test_a_checkpoint_moves_no_more_than_it_may(
    store: CheckpointStore, clients: ClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_store, "_MOVED_BYTES", 1000)
    payload = bytes(104)
    for step, changed in ((1, range(1000)), (2, range(450)), (3, range(450, 550)), (4, range(0)), (5, range(0))):
        before = set(segments(store))
        saved(store, clients, step, dict.fromkeys(changed, payload))
        (new,) = set(segments(store)) - before
        moved = len(store._clients.entries([clients._segments[clients._numbered]])[0]) - len(changed)
        assert moved == {1: 0, 2: 0, 3: 100, 4: 10, 5: 10}[step], new
    assert read(clients, *range(1000)) == [payload] * 1000


def test_the_scratch_file_is_made_anew_when_most_of_it_was_replaced(
    clients: ClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_store, "_SLACK_BYTES", 10_000)
    clients._limit_bytes = 10_000
    clients.write({99: b"once"})
    (held,) = clients.read([99])
    ends = []
    for step in range(200):
        clients.write({client: bytes([step]) * 1000 for client in range(3)})
        clients.commit()
        ends.append(clients._scratch.end)
    assert max(ends) < 40_000
    assert read(clients, 2, 99) == [bytes([199]) * 1000, b"once"] and bytes(held) == b"once"


@pytest.mark.parametrize("sealed", [False, True])
def test_writing_to_a_buffer_that_was_read_changes_no_file(
    store: CheckpointStore, clients: ClientStore, sealed: bool
) -> None:
    clients.write({1: bytes(8)})
    clients.commit()
    if sealed:
        store.save(state(1), clients)
    (buffer,) = clients.read([1])
    tensor = torch.from_dlpack(pa.Array.from_buffers(pa.uint8(), 8, [None, buffer]))
    tensor.fill_(7)
    assert bytes(buffer) == b"\7" * 8 and read(clients, 1) == [bytes(8)]


# ------------------------------------------------------------------------------------------------ other storages


def remote(store: CheckpointStore) -> CheckpointStore:
    """Make a store take its folder for a remote one: no renaming within, no mapping, no appending."""
    store._fs = fs.SubTreeFileSystem("/", fs.LocalFileSystem())
    store._clients = SegmentFolder(store._fs, store._clients.root)
    return store


def test_states_in_a_remote_storage_are_fetched_at_most_once_while_memory_lasts(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_segments, "CACHE_BYTES", 2500)
    clients = remote(store).client_store(tmp_path)
    for step in (1, 2):
        saved(store, clients, step, {client: bytes([client]) * 1000 for client in range(2 * step, 2 * step + 2)})
    assert read(clients, 2, 5, 2) == [bytes([2]) * 1000, bytes([5]) * 1000, bytes([2]) * 1000]
    assert clients._folder._cached_bytes == 2000
    for path in segments(store):
        path.rename(path.with_suffix(".away"))
    assert read(clients, 5, 2, 77) == [bytes([5]) * 1000, bytes([2]) * 1000, None]
    with pytest.raises(ResumeError, match=r"000002-.*\.states"):
        clients.read([4])
    for path in segments(store):
        path.rename(path.with_suffix(".states"))
    assert read(clients, 4, 3) == [bytes([4]) * 1000, bytes([3]) * 1000]
    assert clients._folder._cached_bytes == 2000


@pytest.mark.parametrize("far", [False, True])
def test_a_run_that_begins_at_anothers_checkpoint_has_copies_of_its_states(
    store: CheckpointStore, clients: ClientStore, tmp_path: Path, far: bool
) -> None:
    saved(store, clients, 1, {1: b"one", 2: b"two"})
    saved(store, clients, 2, {2: b"TWO"})
    mine = CheckpointStore(tmp_path / "mine" / "checkpoints", keep=2)
    heir = (remote(mine) if far else mine).client_store(tmp_path / "mine", 2, store)
    for path in segments(store):
        path.unlink()
    assert read(heir, 1, 2, 3) == [b"one", b"TWO", None]
    saved(mine, heir, 3, {3: b"three"})
    assert read(mine.client_store(tmp_path, 3), 1, 2, 3) == [b"one", b"TWO", b"three"]
    heir.close()


# -------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("harm", ["cut", "remove", "index"])
def test_a_damaged_segment_is_told_and_an_older_checkpoint_is_taken(
    store: CheckpointStore, clients: ClientStore, tmp_path: Path, harm: str
) -> None:
    saved(store, clients, 1, {1: b"one" * 99})
    before = set(segments(store))
    saved(store, clients, 2, {2: b"two" * 99})
    (path,) = set(segments(store)) - before
    data = path.read_bytes()
    if harm == "cut":
        path.write_bytes(data[:-10])
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data[:-50] + bytes([data[-50] ^ 1]) + data[-49:])
    told: list[str] = []
    found = store.newest(told.append)
    assert found is not None and found.step == 1
    assert path.name in told[0]
    with pytest.raises(ResumeError, match=path.name):
        store.client_store(tmp_path, 2)
    with pytest.raises(ResumeError, match=path.name):
        store.load(2)


@pytest.mark.parametrize("far", [False, True])
def test_a_damaged_state_is_told_when_it_is_read(store: CheckpointStore, tmp_path: Path, far: bool) -> None:
    clients = (remote(store) if far else store).client_store(tmp_path)
    saved(store, clients, 1, {1: b"one" * 99, 2: b"two"})
    (path,) = segments(store)
    path.write_bytes(b"!" + path.read_bytes()[1:])
    again = store.client_store(tmp_path, 1)
    assert read(again, 2) == [b"two"]
    with pytest.raises(ResumeError, match=f"{path.name}.*state of client 1 does not match"):
        again.read([2, 1])
    os.truncate(path, 0)
    with pytest.raises(ResumeError, match=path.name):
        clients.read([1])


def test_a_full_disk_leaves_a_step_unwritten(clients: ClientStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clients.write({1: b"old", 2: b"old"})
    clients.commit()
    write, end = os.pwrite, clients._scratch.end

    def full(descriptor: int, data: memoryview, position: int) -> int:
        if position > end + 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:3], position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OrchestratorError, match="No space left on device"):
        clients.write({1: b"new", 3: b"new"})
    monkeypatch.undo()
    assert clients._scratch.end == end == os.fstat(clients._scratch._file.fileno()).st_size  # type: ignore[union-attr]
    assert read(clients, 1, 2, 3) == [b"old", b"old", None]
    clients.write({3: b"room again"})
    assert read(clients, 1, 3) == [b"old", b"room again"]


def test_a_storage_that_is_full_leaves_no_segment_and_loses_nothing(
    store: CheckpointStore, clients: ClientStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(store, clients, 1, {1: b"one"})
    clients.write({1: b"ONE", 2: b"two"})
    clients.commit()

    def full(entries: np.ndarray) -> pa.Buffer:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = segments(store)
    monkeypatch.setattr(client_segments, "_encode", full)
    with pytest.raises(OrchestratorError, match=r"000002-.*No space left on device"):
        store.save(state(2), clients)
    monkeypatch.undo()
    assert segments(store) == before and store.steps() == [1]
    assert read(clients, 1, 2) == [b"ONE", b"two"]
    store.save(state(2), clients)
    assert read(store.client_store(tmp_path, 2), 1, 2) == [b"ONE", b"two"]


def test_a_process_that_is_killed_between_write_and_save_leaves_the_last_checkpoint(
    store: CheckpointStore, tmp_path: Path
) -> None:
    clients = store.client_store(tmp_path)
    for step in (1, 2):
        saved(store, clients, step, dict.fromkeys(range(step, 20), b"%d" % step * 5000))
    known = [tuple(segment) for segment in clients.seal(2)]
    clients.close()
    program = f"""
import os, signal
from pathlib import Path
from pyarrow.fs import LocalFileSystem
from orchestrator.client_segments import Segment, SegmentFolder
from orchestrator.client_store import ClientStore
clients = ClientStore(SegmentFolder(LocalFileSystem(), {store.location + "/clients"!r}), Path({str(tmp_path)!r}))
clients.restore([Segment(*fields) for fields in {known!r}])
clients.write({{client: b"3" * 5000 for client in range(3, 30)}})
clients.commit()
clients.seal(3)
clients.write({{client: b"4" * 5000 for client in range(3, 30)}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(client_store.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=120).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    assert len(segments(store)) == 3
    found = store.newest()
    assert found is not None and found.step == 2
    again = store.client_store(tmp_path, 2)
    assert read(again, 1, 2, 20) == [b"1" * 5000, b"2" * 5000, None]
    store.save(state(3), again)
    assert len(segments(store)) == 1, "what the killed process had sealed was no checkpoint's"


# --------------------------------------------------------------------------------------------------------- scale


def test_memory_is_paid_for_clients_seen_not_for_those_registered(store: CheckpointStore, clients: ClientStore) -> None:
    chosen, payload = np.random.default_rng(0).choice(1_000_000, 2000, replace=False).tolist(), bytes(2000)
    tracemalloc.start()
    for step in range(20):
        cohort = chosen[step * 100 : (step + 1) * 100]
        assert clients.read(cohort) == [None] * 100
        clients.write(dict.fromkeys(cohort, payload))
        clients.commit()
    store.save(state(1), clients)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(clients) == 2000 and clients.index_bytes < 64 * 2000
    assert held < 1 << 20, "of 4 MB that are on disk"


def test_the_index_finds_every_client_and_no_other() -> None:
    rng, index, known = np.random.default_rng(0), ClientIndex(), {}
    for among in (50, 5000, 10**15) * 20:
        entries = np.zeros(int(rng.integers(0, min(among, 80))), ENTRY)
        entries["client"] = (
            rng.choice(among, len(entries), replace=False)
            if among < 10**6
            else rng.integers(-among, among, len(entries))
        )
        entries["offset"] = rng.integers(0, 10**9, len(entries))
        index.put(entries)
        known |= dict(zip(entries["client"].tolist(), entries["offset"].tolist(), strict=True))
        asked = np.concatenate([rng.integers(0, 5000, 50), np.array(list(known)[:50], np.int64)])
        found = index.find(asked)
        assert [row >= 0 for row in found] == [client in known for client in asked.tolist()]
        for client, row in zip(asked[found >= 0].tolist(), found[found >= 0], strict=True):
            assert (index.entries[row]["client"], index.entries[row]["offset"]) == (client, known[client])
    assert len(index) == len(known)
