"""Checkpoints that ranks write by themselves: whole or absent, checked when read, and the last good one is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints import CheckpointStore
from orchestrator.engines.base import RunState, ShardSet
from orchestrator.errors import ResumeError
from orchestrator.shard_sets import assembled, trees_of
from trainers.shards import pieces_of, write
from trainers.shared_folder import MARK, NotShared, run


def model(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"a": torch.randn(5, 3, generator=generator), "b.c": torch.randn((), generator=generator)}


def written(store: CheckpointStore, step: int, ranks: int = 2) -> RunState:
    """The state after a step, its files written by as many ranks."""
    tensors = model(step)
    files = []
    for rank in range(ranks):
        pieces = [*pieces_of("model", tensors.items(), rank, ranks), *pieces_of("optimizer.m", [("a", tensors["a"])],
                  rank, ranks)]  # fmt: skip
        files.append(write(store.place(step), f"shard-{rank}-of-{ranks}.arrow", pieces)._asdict())
    return RunState(step, None, {}, shards=ShardSet(store.place(step), tuple(files)))


def assert_model(state: RunState | None, step: int) -> None:
    assert state is not None and state.step == step and state.whole
    whole = assembled(state)
    assert whole.shards is None and whole.model is not None
    assert all(torch.equal(whole.model[name], tensor) for name, tensor in model(step).items())
    assert torch.equal(whole.server["optimizer.m"]["a"], model(step)["a"])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_what_ranks_wrote_comes_back_whole_and_the_newest_are_kept(tmp_path: Path, scheme: str) -> None:
    store = CheckpointStore(f"{scheme}{tmp_path / 'checkpoints'}", keep=2)
    for step, ranks in ((5, 2), (10, 1), (15, 3)):
        info = store.save(written(store, step, ranks))
        assert info.step == step and info.num_bytes > 100
    assert store.steps() == [10, 15]
    assert_model(store.newest(), 15)
    assert_model(store.load(10), 10)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "marker", "elsewhere"])
def test_a_damaged_shard_is_told_and_the_checkpoint_before_is_taken(tmp_path: Path, harm: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        store.save(written(store, step))
    folder = tmp_path / "step-000002"
    shard = folder / "shard-1-of-2.arrow"
    data = shard.read_bytes()
    if harm == "flip":
        shard.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    elif harm == "cut":
        shard.write_bytes(data[:-1])
    elif harm == "remove":
        shard.unlink()
    else:
        marker = json.loads((folder / "checkpoint.json").read_text())
        marker["shards"] = 3 if harm == "marker" else [{**marker["shards"][0], "name": "../../x"}]
        (folder / "checkpoint.json").write_text(json.dumps(marker))
    said: list[str] = []
    assert_model(store.newest(said.append), 1)
    assert len(said) == 1 and "step-000002" in said[0] and "trying the one before" in said[0]
    if harm in ("flip", "cut", "remove"):
        assert "shard-1-of-2" in said[0]


def test_with_every_checkpoint_damaged_the_error_names_them(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(written(store, 1))
    (tmp_path / "step-000001" / "shard-0-of-2.arrow").unlink()
    with pytest.raises(ResumeError, match=r"no whole checkpoint.*\n.*shard-0-of-2"):
        store.newest()
    with pytest.raises(ResumeError, match="shard-0-of-2"):
        trees_of(
            ShardSet(str(tmp_path / "step-000001"), ({"name": "shard-0-of-2.arrow", "num_bytes": 1, "sha256": ""},))
        )


@pytest.mark.parametrize("harm", ["remove", "cut"])
def test_nothing_is_marked_whole_unless_all_that_ranks_told_of_is_there(tmp_path: Path, harm: str) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    state = written(store, 1)
    shard = tmp_path / "step-000001" / "shard-1-of-2.arrow"
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    with pytest.raises(ResumeError, match=r"shard-1-of-2.*(missing|bytes)"):
        store.save(state)
    assert store.steps() == []


def test_a_save_clears_what_other_ranks_left_and_what_lost_ranks_never_finished(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(written(store, 2))
    written(store, 4, ranks=3)  # a gang of three, lost before all had reported
    written(store, 6, ranks=3)
    written(store, 8, ranks=3)
    store.save(written(store, 6, ranks=2))
    assert store.steps() == [2, 6]
    assert not (tmp_path / "step-000004").exists() and (tmp_path / "step-000008").exists()
    names = sorted(path.name for path in (tmp_path / "step-000006").iterdir())
    assert names == ["checkpoint.json", "shard-0-of-2.arrow", "shard-1-of-2.arrow"]
    assert_model(store.newest(), 6)


def test_a_run_goes_on_from_files_to_trees_and_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(written(store, 1))
    trees = assembled(store.load(1))
    store.save(RunState(1, trees.model, trees.server))  # the same step anew, by a run without workers
    again = store.load(1)
    assert again.shards is None
    assert sorted(path.name for path in (tmp_path / "step-000001").glob("shard-*")) == []
    store.save(written(store, 1))
    assert_model(store.load(1), 1)
    assert not (tmp_path / "step-000001" / "model.arrow").exists()


SEEN: list[dict[str, Any]] = []


def program(context: Any, **settings: Any) -> None:
    SEEN.append(settings)


class Rank:
    rank, world_size, device = 1, 2, "cpu"

    def report(self, payload: Any) -> str:
        return ""


def test_ranks_begin_only_where_they_see_the_drivers_folder(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "a", keep=1)
    store.probe()
    word, here = store.mark(), f"{__name__}:program"
    SEEN.clear()
    run(Rank(), program=here, folder=store.place(), word=word, begin=0)
    run(Rank(), program=here, folder=f"file://{store.place()}", word=word)
    assert [settings["folder"] for settings in SEEN] == [store.place(), f"file://{store.place()}"]
    assert CheckpointStore(f"file://{tmp_path / 'a'}", keep=1).mark() is not None  # another word
    with pytest.raises(NotShared, match=r"rank 1 does not see .*checkpoint\.storage"):
        run(Rank(), program=here, folder=store.place(), word=word)
    (tmp_path / "a" / MARK).unlink()
    with pytest.raises(NotShared, match="nothing"):
        run(Rank(), program=here, folder=store.place(), word=word)
    run(Rank(), program=here, folder="s3://bucket/run", word=None)
    assert store.steps() == []
