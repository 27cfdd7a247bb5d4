"""A checkpoint is whole or is not one, and what is damaged is told and passed over."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoints import CheckpointStore
from orchestrator.engines.base import RunState
from orchestrator.errors import ConfigError, ResumeError
from strategies.federated.clock import AT_REST, Clock, Ticket
from trainers import wire


def state(step: int) -> RunState:
    generator = torch.Generator().manual_seed(step)
    model = {"a": torch.randn(3, 5, generator=generator), "b.c": torch.randn((), generator=generator).double()}
    server = {"momentum": {"a": torch.randn(3, 5, generator=generator)}}
    versions = {number: {"a": torch.randn(3, 5, generator=generator)} for number in (step - 1, step)}
    clock = Clock.of(
        0.1 + step / 3, 7, (Ticket(1.1, 4, 2, step, 0.3, dropped=True), Ticket(math.inf, 5, 3, AT_REST, 0.1))
    )
    return RunState(step, model, server, clock, versions)


def assert_same(got: RunState | None, want: RunState) -> None:
    assert got is not None
    assert replace(got, model={}, server={}, versions={}) == replace(want, model={}, server={}, versions={})
    assert list(got.versions) == list(want.versions)
    pairs = [(got.versions[number], want.versions[number]) for number in want.versions]
    for mine, theirs in ((got.model, want.model), (got.server["momentum"], want.server["momentum"]), *pairs):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_state_comes_back_bit_for_bit_and_the_newest_are_kept(tmp_path: Path, scheme: str) -> None:
    store = CheckpointStore(f"{scheme}{tmp_path / 'checkpoints'}", keep=2)
    assert store.newest() is None
    for step in (5, 10, 1_000_000):
        info = store.save(state(step))
        assert info.step == step
    assert store.steps() == [10, 1_000_000]
    assert_same(store.newest(), state(1_000_000))
    assert_same(store.load(10), state(10))


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "marker"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_taken(tmp_path: Path, harm: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        store.save(state(step))
    model = tmp_path / "step-000002" / "model.arrow"
    data = model.read_bytes()
    if harm == "flip":
        model.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif harm == "cut":
        model.write_bytes(data[: len(data) // 2])
    elif harm == "remove":
        model.unlink()
    else:
        (model.parent / "checkpoint.json").write_text("{}")
    told: list[str] = []
    assert_same(store.newest(told.append), state(1))
    assert len(told) == 1
    assert "step-000002 is damaged" in told[0]
    with pytest.raises(ResumeError, match="step-000002 is damaged"):
        store.load(2)


def test_only_damaged_checkpoints_are_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(state(1))
    (tmp_path / "step-000001" / "server.arrow").write_bytes(b"")
    with pytest.raises(ResumeError, match=r"no whole checkpoint(.|\n)*orchestrator run"):
        store.newest()


def test_a_write_that_stops_half_way_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(state(1))
    monkeypatch.setattr(wire, "encode", _fails_the_second_time(wire.encode))
    with pytest.raises(OSError, match="no space"):
        store.save(state(2))
    assert store.steps() == [1]
    monkeypatch.undo()
    store.save(state(2))  # over what was left
    assert_same(store.newest(), state(2))


def _fails_the_second_time(encode: object) -> object:
    calls = []

    def failing(tree: object) -> object:
        calls.append(tree)
        if len(calls) == 2:
            raise OSError("no space left on device")
        return encode(tree)  # type: ignore[operator]

    return failing


def test_a_checkpoint_of_another_format_is_told(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(state(1))
    marker = tmp_path / "step-000001" / "checkpoint.json"
    marker.write_text(marker.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(ResumeError, match=r"format 9, this version reads 2(?s:.*)use the version"):
        store.load(1)


def test_storage_that_cannot_be_used_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"checkpoint\.storage: cannot write to"):
        CheckpointStore(tmp_path / "file" / "below", keep=1).probe()
    with pytest.raises(ConfigError, match=r"checkpoint\.storage: cannot use(?s:.*)such as s3://"):
        CheckpointStore("nonsense://bucket/run", keep=1)
    CheckpointStore(tmp_path / "new", keep=1).probe()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    store, want = CheckpointStore(tmp_path, keep=3), replace(state(1), versions={}, clock=Clock(0.5, 7))
    store.save(want)
    folder = tmp_path / "step-000001"
    for name in ("versions.arrow", "tickets.arrow"):
        (folder / name).unlink()
    marker = json.loads((folder / "checkpoint.json").read_text())
    del marker["clients"], marker["files"]["versions.arrow"], marker["files"]["tickets.arrow"]
    (folder / "checkpoint.json").write_text(json.dumps(marker | {"format": 1}))
    assert_same(store.newest(), want)
    assert store.client_store(tmp_path, 1).read([0, 5]) == [None, None]
