"""What ZeRO's ranks work out for themselves: shares of batches, DeepSpeed's configuration, and what cannot be."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.parity.zero_processes import Context, dataset, settings
from trainers import loop, shards
from trainers.shards import Piece, ShardError
from trainers.zero import native
from trainers.zero.forward import logits
from trainers.zero.inline import InlineZero
from trainers.zero.native import Unsuitable, configuration, insist_possible
from trainers.zero.saving import Saving
from trainers.zero.settings import Shares, parts_of_tests

EXAMPLES = 37


@pytest.mark.parametrize(("batch_size", "ranks"), [(7, 2), (8, 3), (2, 3), (50, 4)])
def test_shares_are_the_whole_step_and_weigh_one_together(batch_size: int, ranks: int):
    given = settings(batch_size=batch_size, ranks=ranks, accumulate=2)
    for step in (1, 9):
        parts = [Shares(given, EXAMPLES).of_step(step, rank) for rank in range(ranks)]
        counted = [share for part in parts for share in part if share.weight]
        whole = Shares(given._replace(ranks=1), EXAMPLES).of_step(step, 0)
        rows, expected = ([row for share in some for row in share.rows] for some in (counted, whole))
        assert sorted(rows) == sorted(expected)
        assert sum(share.weight for share in counted) == pytest.approx(1)
        for share in counted:
            assert share.weight == pytest.approx(len(share.rows) / len(rows))
        assert all(len(share.rows) for part in parts for share in part)
        assert len({share.seed for part in parts for share in part}) == 2 * ranks


@pytest.mark.parametrize(("num_examples", "batch_size", "ranks"), [(11, 4, 2), (9, 4, 2), (1, 4, 3), (100, 7, 3)])
def test_every_test_example_is_gone_through_once_in_as_many_passes_on_every_rank(
    num_examples: int, batch_size: int, ranks: int
):
    parts = [parts_of_tests(num_examples, batch_size, ranks, rank) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert np.concatenate([rows for part in parts for rows in part]).tolist() == list(range(num_examples))
    assert max(len(rows) for part in parts for rows in part) <= batch_size


def test_ours_win_over_the_users_and_the_users_over_defaults():
    given = {
        "train_batch_size": 999,
        "optimizer": {"type": "Adam", "params": {"lr": 3}},
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 123, "stage3_prefetch_bucket_size": "auto"},
        "wall_clock_breakdown": True,
    }
    found = configuration(settings(stage=3, batch_size=7, accumulate=3, deepspeed=given), [1000, 500])
    assert found["train_batch_size"] == 24 and found["gradient_accumulation_steps"] == 3
    assert found["gradient_clipping"] == 0.5 and found["wall_clock_breakdown"] is True
    zero = found["zero_optimization"]
    assert zero["stage"] == 3 and zero["reduce_bucket_size"] == 123 and zero["stage3_prefetch_bucket_size"] == 500
    assert "optimizer" not in found and "offload_optimizer" not in zero
    assert given["zero_optimization"]["stage"] == 1


def test_offload_goes_where_the_stage_has_something_to_move():
    two, three = (configuration(settings(stage=stage, offload="cpu"), [8])["zero_optimization"] for stage in (2, 3))
    assert two["offload_optimizer"] == {"device": "cpu"} and "offload_param" not in two
    assert three["offload_param"] == {"device": "cpu"} == three["offload_optimizer"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": 1, "optimizer": {"name": "muon", "lr": 1}}, "whole matrices, but at stage 1"),
        ({"stage": 2, "offload": "nvme"}, "stage 3 only, got stage 2"),
        ({"stage": 3, "offload": "nvme"}, "offload nvme needs ninja"),
        ({"model": {"name": "mlp", "dtype": "float64"}}, "got model.dtype float64"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(native, "_missing_for_nvme", lambda: "ninja")
    with pytest.raises(Unsuitable, match=message):
        insist_possible(settings(**changes))
    insist_possible(settings(stage=0, optimizer={"name": "muon", "lr": 1}))


def test_logits_are_found_in_what_models_return():
    scores = torch.zeros(2)
    assert logits(scores) is scores and logits({"logits": scores}) is scores
    assert logits(type("Output", (), {"logits": scores})()) is scores and logits(3) == 3


def test_one_process_computes_the_same_whatever_the_ranks_without_dropout():
    given = settings(model={**settings().model, "dropout": 0.0})
    curves = []
    for ranks in (1, 2, 4):
        inline = InlineZero(given._replace(ranks=ranks), dataset())
        curves.append([inline.step(number)["train/loss"] for number in range(1, 5)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6) and curves[0] == pytest.approx(curves[2], abs=1e-6)


def test_one_process_goes_on_as_if_it_had_not_stopped():
    for precision in (None, "bf16"):
        given = settings(precision=precision)
        whole, other = (InlineZero(given, dataset()) for _ in range(2))
        for number in (1, 2, 3):
            whole.step(number)
        other.restore(whole.export())
        assert [whole.step(number) for number in (4, 5)] == [other.step(number) for number in (4, 5)]


# --------------------------------------------------------------------------------------------- in the background


def held() -> list[Piece]:
    return [Piece("model", "weight", (3,), 0, torch.ones(3))]


def test_a_checkpoint_is_of_the_state_when_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    go, write, weight = threading.Event(), shards.write, torch.ones(3)

    def late(*arguments: Any) -> Any:
        assert go.wait(30)
        return write(*arguments)

    monkeypatch.setattr(shards, "write", late)
    saving = Saving(str(tmp_path), "a.arrow", lambda: [Piece("model", "weight", (3,), 0, weight)])
    assert saving.begin(7) == [] and saving.done() == []
    weight.zero_()
    go.set()
    (written,) = saving.wait()
    assert written.step == 7 and saving.wait() == []
    read = shards.Shards.open(f"{tmp_path}/step-000007", [written.file])
    assert read.read("model", "weight").tolist() == [1, 1, 1]


def test_a_write_that_failed_is_told_by_the_next_question(tmp_path: Path):
    (tmp_path / "file").write_text("")
    saving = Saving(str(tmp_path / "file"), "a.arrow", held)
    saving.begin(1)
    with pytest.raises(OSError, match="file"):
        saving.begin(2)
    bad = Saving(str(tmp_path), "a.arrow", lambda: [held()[0]._replace(start=2)])
    bad.begin(1)
    with pytest.raises(ShardError, match="has 3 elements"):
        bad.wait()


class Work:
    """Does nothing, for a while."""

    ends = False

    def step(self, number: int, stop: bool) -> loop.Outcome:
        return loop.Outcome({}, stop)

    def evaluate(self, number: int) -> dict[str, float]:
        return {}

    def export(self) -> Any:
        raise AssertionError("states are written, not reported")

    def spans_since(self, began_s: float) -> Any:
        return []


@pytest.mark.parametrize("stop_at", [None, 3])
def test_every_state_that_is_due_is_told_once_it_is_there(tmp_path: Path, stop_at: int | None):
    context = Context(0, 1, stop_at)
    plan = loop.Plan(0, 9, 100, 2, speaks=True, drawn=None, saves=0)
    loop.train(context, Work(), plan, Saving(str(tmp_path), "shard-0-of-1.arrow", held))
    told = [one for one in context.told if one["kind"] == "state"]
    assert [one["step"] for one in told] == ([2, 4, 6, 8, 9] if stop_at is None else [2, 4])
    assert all(Path(tmp_path, f"step-{one['step']:06d}", one["file"]["name"]).is_file() for one in told)
