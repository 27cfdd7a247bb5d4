"""How a model is cut into stages, and what is expected of them."""

from __future__ import annotations

import io
from typing import Any

import pytest

from orchestrator.config import load_experiment
from orchestrator.errors import ConfigError
from orchestrator.planning import plan
from orchestrator.preparing import prepare
from orchestrator.progress import size
from orchestrator.stages import divide, num_microbatches, settings_of
from trainers.pipeline import deferred
from trainers.pipeline.inline import InlinePipeline


def raw(**strategy: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [96] * 7},
        "strategy": {"kind": "pipeline", "microbatches": 4, "batch_size": 64, "steps": 2, **strategy},
        "tracking": {"enabled": False},
    }


def cut(**strategy: Any) -> Any:
    return divide(prepare(load_experiment(raw(**strategy))))


@pytest.mark.parametrize("partition", ["time", "parameters", [3, 9, 4]])
def test_every_layer_is_in_one_stage(partition: Any) -> None:
    stages = cut(stages=3, partition=partition)
    assert sum(stages.layers) == len(stages.costs) == 16
    assert len(stages.layers) == 3 and min(stages.layers) >= 1
    if isinstance(partition, list):
        assert list(stages.layers) == partition


def test_equal_numbers_of_parameters_are_balanced_exactly() -> None:
    stages = cut(stages=4, partition="parameters")
    each = [sum(cost.num_parameters for cost in stages.of_stage(stage)) for stage in range(4)]
    assert max(each) <= 2 * (96 * 96 + 96), "two hidden layers at most"


@pytest.mark.parametrize(
    "mode, counts", [("never", [0, 0]), ("except-last", [3, 3]), ("always", [4, 4])]
)  # torchgpipe's scenario of counting checkpoints
def test_as_many_microbatches_are_recomputed_as_the_mode_says(mode: str, counts: list[int]) -> None:
    prepared = prepare(load_experiment(raw(recompute=mode)))
    pipeline = InlinePipeline(settings_of(prepared.experiment, divide(prepared)), prepared.dataset)
    pipeline.step(1)
    done = [[span.kind for span in rank.spans].count("R") for rank in pipeline.ranks]
    assert done == counts
    assert [len(divide(prepared).predicted.recomputed[stage]) for stage in range(2)] == counts


def test_a_memory_limit_makes_stages_recompute_only_as_much_as_needed() -> None:
    free = cut(stages=2, partition="parameters")
    whole = [free.stage_bytes(stage) for stage in range(2)]
    tight = cut(stages=2, partition="parameters", recompute="fit", stage_memory=max(whole) - 1)
    assert sorted(tight.recompute)[-1] == "never" or "never" not in tight.recompute
    assert any(mode != "never" for mode in tight.recompute)
    assert all(tight.stage_bytes(stage) < max(whole) for stage in range(2))
    roomy = cut(stages=2, partition="parameters", recompute="fit", stage_memory=2 * max(whole))
    assert roomy.recompute == ("never", "never")


def test_a_limit_that_nothing_fits_is_refused_with_the_need() -> None:
    with pytest.raises(ConfigError) as caught:
        cut(stages=2, recompute="fit", stage_memory=1000)
    assert "strategy.stage" in str(caught.value)


def test_fewer_layers_than_stages_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="17 pieces to cut 16 layers into"):
        prepare(load_experiment(raw(stages=17)))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most the 1438 examples"):
        prepare(load_experiment(raw(batch_size=5000)))


def test_more_microbatches_than_messages_can_be_told_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.stages.NUM_MICROBATCHES", 3)
    with pytest.raises(ConfigError) as caught:
        divide(prepare(load_experiment({**raw(stages=2, replicas=2), "evaluate": {"batch_size": 50}})))
    text = str(caught.value)
    assert "got 4 micro-batches, expected at most 3" in text and "strategy.microbatches=3" in text
    assert "got 50, which cuts the test examples into 4 micro-batches" in text and "evaluate.batch_size=60" in text
    assert cut(stages=2, microbatches=3).layers, "evaluations come in one piece unless they are told otherwise"


def test_fit_needs_a_limit() -> None:
    with pytest.raises(ConfigError, match="stage_memory says no limit"):
        load_experiment(raw(recompute="fit"))


def test_a_plan_says_stages_time_bubble_and_bytes() -> None:
    from rich.console import Console

    drawn = plan(raw(stages=2, schedule="1f1b"))
    console = Console(record=True, width=200, soft_wrap=True, file=io.StringIO())
    drawn.render(console)
    text = console.export_text()
    assert drawn.exit_code == 0
    assert "stage 0 F0" in text and "bubble" in text and "sent between stages" in text
    strategy = drawn.experiment.strategy
    assert num_microbatches(strategy) == 4
    boundary = drawn.stages.of_position(1)[0].input_bytes
    assert boundary == 16 * 96 * 4, "a micro-batch of 16 examples, 96 floats each"


def test_a_plan_of_a_folded_model_names_both_pieces_and_leaves_out_the_turn() -> None:
    from rich.console import Console

    drawn = plan(raw(stages=2, schedule="zero-bubble-v", partition=[5, 4, 4, 3]))
    console = Console(record=True, width=200, soft_wrap=True, file=io.StringIO())
    drawn.render(console)
    text = console.export_text()
    names = [cost.name.split(" ")[0] for cost in drawn.stages.costs]
    assert f"{names[0]} ... {names[4]}, {names[13]} ... {names[15]}" in text
    assert f"{names[5]} ... {names[8]}, {names[9]} ... {names[12]}" in text
    assert [len(drawn.stages.of_stage(stage)) for stage in range(2)] == [8, 8]
    assert "W0" in text and "of the rank's second chunk" in text
    # two of the three cuts are between ranks, each crossed by 4 micro-batches of 16 examples, there and back
    cuts = [drawn.stages.of_position(position)[0].input_bytes for position in (1, 3)]
    assert size(2 * 4 * sum(cuts)) in next(line for line in text.split("\n") if "sent between stages" in line)


def test_the_gradients_that_wait_for_the_weights_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    put: dict[tuple[int, int], int] = {}

    def counted(store: Any, work: Any) -> None:
        kept = dict(zip(work.__code__.co_freevars, work.__closure__, strict=True))
        key = id(store), store.microbatch
        put[key] = put.get(key, 0) + kept["grad"].cell_contents.untyped_storage().nbytes()
        keep(store, work)

    keep = deferred.Store.put
    prepared = prepare(load_experiment(raw(schedule="zero-bubble", partition=[8, 8])))
    stages = divide(prepared)
    pipeline = InlinePipeline(settings_of(prepared.experiment, stages), prepared.dataset)
    monkeypatch.setattr(deferred.Store, "put", counted)
    pipeline.step(1)
    want = [sum(cost.gradient_bytes for cost in stages.of_stage(stage)) for stage in range(2)]
    assert want == [4 * 96 * 16 * 4, (3 * 96 + 10) * 16 * 4], "four linear layers each, 16 examples of a micro-batch"
    assert sorted(put.values()) == sorted(4 * want)
    plain = divide(prepare(load_experiment(raw(schedule="1f1b", partition=[8, 8]))))
    assert plain.stage_bytes(0) < stages.stage_bytes(0)


def test_a_pipeline_that_does_not_fit_is_told_by_the_plan() -> None:
    drawn = plan({**raw(stages=3), "cluster": {"workers": 3, "resources_per_worker": {"CPU": 10_000}}})
    assert drawn.exit_code == 3
    assert "short of" in drawn.problems[0]


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"schedule": "interleaved", "chunks": 1}, "strategy.chunks: got 1"),
        ({"schedule": "zero-bubble-v", "chunks": 3}, "got 3, but zero-bubble-v has 2 parts of the model on each stage"),
        ({"schedule": "zero-bubble-v", "partition": [8, 8]}, "2 numbers of layers for 2 stages and 2 chunks"),
        ({"partition": [5, 5]}, "10 layers, the model has 16"),
        ({"partition": [5, 5, 6]}, "3 numbers of layers for 2 stages"),
        ({"loss": {"target": "nope:f"}}, "strategy.loss.target"),
        ({"loss": {"target": "math:sqrt"}}, r"the loss was given \[16, 10\] float32 and targets \[16\] int64"),
        ({"optimizer": {"name": "adamm"}}, "did you mean 'adam'"),
        ({"replicas": 100}, "64 examples for 100 replicas"),
        ({"recompute": "fit", "stage_memory": 1000}, "strategy.stage_memory"),
    ],
)
def test_what_cannot_run_is_refused_with_what_to_type(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cut(**changes)


def test_the_memory_of_a_stage_counts_the_replica_with_the_largest_share_of_optimizer_states() -> None:
    adam = {"stages": 2, "replicas": 2, "partition": "parameters", "optimizer": {"name": "adamw"}}
    whole, shared = prepare(load_experiment(raw(**adam))), prepare(load_experiment(raw(**adam, shard_optimizer=True)))
    before, after = divide(whole), divide(shared)
    pipeline = InlinePipeline(settings_of(shared.experiment, after), shared.dataset)
    pipeline.step(1)
    for stage in range(2):
        held = [
            sum(
                value.numel()
                for state in rank.update.optimizer.state.values()
                for value in state.values()
                if value.dim()
            )
            for rank in pipeline.ranks
            if rank.stage == stage and rank.update.optimizer is not None
        ]
        num_parameters = sum(cost.num_parameters for cost in after.of_stage(stage))
        assert len(held) == 2 and sum(held) == 2 * num_parameters
        assert after.fixed_bytes[stage] == 4 * (2 * num_parameters + max(held))
        assert before.fixed_bytes[stage] == 4 * 4 * num_parameters
    sections = dict(plan(raw(**adam, shard_optimizer=True)).sections())
    assert any("replicas of a stage have a share each" in line for lines in sections.values() for line in lines)


def test_one_replica_has_nobody_to_share_optimizer_states_with() -> None:
    with pytest.raises(ConfigError, match="nobody to share with"):
        load_experiment(raw(shard_optimizer=True))
