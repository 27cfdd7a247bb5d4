"""A pipeline against the plain computation it stands for: one model, one whole batch, one device, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from strategies.pipeline import chunks_of
from strategies.seeds import integer
from trainers import models
from trainers.data.base import Dataset
from trainers.local import loss_of
from trainers.pipeline import inline
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.settings import Batches, Settings
from trainers.pipeline.state import export, merge, restore
from trainers.pipeline.transport import Key, LocalTransport

SCHEDULES = ["gpipe", "1f1b", "zero-bubble", "zero-bubble-v"]
FEATURES, CLASSES = 7, 3


@pytest.fixture(autouse=True)
def toy_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def dataset(num_examples: int = 40) -> Dataset:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(num_examples, FEATURES))
    y = rng.integers(CLASSES, size=num_examples)
    return Dataset("toy", "classification", x, y, x[:11], y[:11], CLASSES, (FEATURES,))


def setting(kinds: str, counts: list[int], **changes: Any) -> Settings:
    plain = {
        "model": {
            "target": "toy_chain:build", "kwargs": {"kinds": kinds, **changes.pop("kwargs", {})}, "dtype": "float64",
        },
        "seed": 5, "model_seed": integer(5, "model"), "stages": len(counts), "replicas": 1, "schedule": "gpipe",
        "microbatches": 4, "layers": tuple(counts), "recompute": ("never",) * len(counts), "batch_size": 13,
        "accumulate": 1, "optimizer": {"name": "sgd", "lr": 0.1, "kwargs": {}},
        "learning_rate": {"name": "constant", "warmup_steps": 0, "final": 0.0}, "clip_norm": None,
        "loss": {"reduction": "mean"}, "precision": None, "steps": 20, **changes,
    }  # fmt: skip
    if "stages" in changes:
        plain["recompute"] = plain["recompute"][: changes["stages"]]
    return Settings(**plain)


def reference(chosen: Settings, data: Dataset) -> nn.Module:
    return models.build(chosen.model, input_shape=(FEATURES,), num_classes=CLASSES, seed=chosen.model_seed)


def plain_gradients(chosen: Settings, data: Dataset, step: int = 1, loss: Any = None) -> dict[str, torch.Tensor]:
    model = reference(chosen, data)
    rows = np.concatenate(Batches(chosen, len(data.train_y)).of_step(step))
    x, y = torch.from_numpy(data.train_x[rows]), torch.from_numpy(data.train_y[rows])
    (loss or (lambda out, y: loss_of(out, y, chosen.loss["reduction"])))(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def pipeline_gradients(chosen: Settings, data: Dataset) -> dict[str, torch.Tensor]:
    """Train one step of plain gradient descent at rate 1 and read the gradients off the change."""
    chosen = chosen._replace(optimizer={"name": "sgd", "lr": 1.0, "kwargs": {}})
    before = models_tree(reference(chosen, data))
    pipeline = InlinePipeline(chosen, data)
    pipeline.step(1)
    after = whole(pipeline)["model"]
    return {name: before[name] - after[name] for name in before}


def models_tree(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def whole(pipeline: InlinePipeline) -> dict[str, dict[str, torch.Tensor]]:
    first = [rank for rank in pipeline.ranks if rank.replica == 0]
    return merge([export(rank) for rank in first], first[0].part.names)


def cut(num_layers: int, stages: int, rng: np.random.Generator) -> list[int]:
    edges = sorted(rng.choice(np.arange(1, num_layers), stages - 1, replace=False))
    return np.diff([0, *edges, num_layers]).tolist()


def num_layers(kinds: str) -> int:
    return 2 + len(kinds) + kinds.count("2")


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == want.keys()
    for name in want:
        scale = max(1.0, float(want[name].abs().max()))
        assert float((got[name] - want[name]).abs().max()) <= tolerance * scale, name


@settings(max_examples=120, deadline=None)
@given(
    kinds=st.sampled_from(["pppp", "(pp)p", "((p)2)p", "tptp", "t(2tp)t", "p2p2p", "(p(p)tt)"]),
    stages=st.integers(1, 6),
    microbatches=st.integers(1, 13),
    schedule=st.sampled_from(SCHEDULES),
    recompute=st.sampled_from(["never", "except-last", "always"]),
    batch_size=st.sampled_from([1, 2, 5, 13]),
    reduction=st.sampled_from(["mean", "sum"]),
    seed=st.integers(0, 99),
)
def test_gradients_equal_those_of_one_device(
    kinds: str, stages: int, microbatches: int, schedule: str, recompute: str, batch_size: int, reduction: str,
    seed: int,
) -> None:  # fmt: skip
    data = dataset()
    stages = min(stages, num_layers(kinds) // chunks_of(schedule, 2))
    counts = cut(num_layers(kinds), stages * chunks_of(schedule, 2), np.random.default_rng(seed))
    chosen = setting(
        kinds, counts, stages=stages, microbatches=microbatches, schedule=schedule,
        recompute=(recompute,) * stages, batch_size=batch_size, loss={"reduction": reduction},
    )  # fmt: skip
    assert_close(pipeline_gradients(chosen, data), plain_gradients(chosen, data))


@settings(max_examples=40, deadline=None)
@given(stages=st.integers(1, 3), chunks=st.integers(2, 3), microbatches=st.integers(1, 9), seed=st.integers(0, 99))
def test_interleaved_gradients_equal_those_of_one_device(
    stages: int, chunks: int, microbatches: int, seed: int
) -> None:
    data, kinds = dataset(), "t(pp2p)tp"
    counts = cut(num_layers(kinds), stages * chunks, np.random.default_rng(seed))
    chosen = setting(kinds, counts, stages=stages, schedule="interleaved", microbatches=microbatches)
    assert_close(pipeline_gradients(chosen, data), plain_gradients(chosen, data))


EVERY_SIZE = [("gpipe", "never"), ("1f1b", "always"), ("zero-bubble", "never"), ("interleaved", "always")]
AT_LENGTH = [("gpipe", "always"), ("1f1b", "never"), ("zero-bubble", "always"), ("interleaved", "never")]
FOLDED = [("zero-bubble-v", "by turns"), *(("zero-bubble-v", mode) for mode in ("never", "always"))]


@pytest.mark.parametrize(
    "schedule, recompute",
    [*EVERY_SIZE, FOLDED[0], *(pytest.param(*values, marks=pytest.mark.slow) for values in (*AT_LENGTH, *FOLDED[1:]))],
)
def test_gradients_are_equal_for_every_number_of_stages_and_microbatches(schedule: str, recompute: str) -> None:
    data, kinds = dataset(), "t(pp2p)t(p2)pt"
    for stages in range(1, 7):
        pieces = stages * chunks_of(schedule, 2)
        counts = cut(num_layers(kinds), pieces, np.random.default_rng(stages))
        for microbatches in range(1, 14):
            turn = ("never", "always")[(stages + microbatches) % 2]
            chosen = setting(
                kinds, counts, stages=stages, schedule=schedule, microbatches=microbatches,
                recompute=(turn if recompute == "by turns" else recompute,) * stages,
            )  # fmt: skip
            assert_close(pipeline_gradients(chosen, data), plain_gradients(chosen, data))


class Poisoning(LocalTransport):
    """Hands over copies, as processes do, and spoils what is given back, as the next message into it would."""

    def __init__(self) -> None:
        super().__init__()
        self.lent: dict[int, torch.Tensor] = {}
        self.num_spoiled = 0

    def send(self, key: Key, tensors: dict[str, torch.Tensor], target: int) -> None:
        super().send(key, {name: tensor.clone() for name, tensor in tensors.items()}, target)

    def receive(self, key: Key) -> dict[str, torch.Tensor]:
        tensors = super().receive(key)
        self.lent.update((tensor.data_ptr(), tensor) for tensor in tensors.values())
        return tensors

    def give_back(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            if tensor.data_ptr() in self.lent:
                self.lent.pop(tensor.data_ptr()).fill_(float("nan"))
                self.num_spoiled += 1


@pytest.mark.parametrize("recompute", ["never", "always"])
@pytest.mark.parametrize("schedule", [*SCHEDULES, "interleaved"])
def test_received_memory_is_given_back_only_when_nothing_reads_it_any_more(
    schedule: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Backward gave back what weight gradients still were to read, and zero-bubble on four ranks learned from the
    # messages that came after; in one process nothing was used again, so no test saw it.
    made: list[Poisoning] = []
    monkeypatch.setattr(inline, "LocalTransport", lambda: made.append(Poisoning()) or made[-1])
    data, kinds = dataset(), "p(pp2p)ppp"
    counts = cut(num_layers(kinds), 4 * chunks_of(schedule, 2), np.random.default_rng(1))
    chosen = setting(kinds, counts, stages=4, schedule=schedule, microbatches=6, recompute=(recompute,) * 4)
    assert_close(pipeline_gradients(chosen, data), plain_gradients(chosen, data))
    (transport,) = made
    assert transport.num_spoiled >= 6 * (len(counts) - 1), "at least a tensor a micro-batch and boundary"


@pytest.mark.parametrize("replicas, accumulate", [(2, 1), (3, 1), (1, 3), (2, 2)])
def test_replicas_and_accumulated_batches_count_as_one_batch(replicas: int, accumulate: int) -> None:
    data = dataset()
    chosen = setting("(p)tt", [2, 3, 2], replicas=replicas, accumulate=accumulate, batch_size=9)
    assert_close(pipeline_gradients(chosen, data), plain_gradients(chosen, data))


class Watched(nn.Module):
    """A layer whose weight is made of two others, and one whose weight's gradient is changed by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, FEATURES))
        self.old = nn.Linear(FEATURES, FEATURES)
        self.old.weight.register_hook(lambda gradient: 2 * gradient)
        self.mapped, self.twice = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.old(torch.tanh(self.normed(x))))
        x = torch.vmap(self.mapped)(x)
        return torch.tanh(self.twice(torch.tanh(self.twice(x))))


def watched(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(Watched(), nn.Linear(FEATURES, num_classes)).double()


@pytest.mark.parametrize("schedule", [*SCHEDULES, "interleaved"])
def test_weight_gradients_that_are_added_where_they_lie_are_those_of_autograd(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.pipeline.deferred.LARGE_BYTES", 1)
    data = dataset()
    counts = [2, 3, 2, 2] if chunks_of(schedule, 2) == 2 else [5, 4]
    ties = setting("t(pp)tp", counts, stages=2, schedule=schedule, accumulate=2, batch_size=9)
    assert_close(pipeline_gradients(ties, data), plain_gradients(ties, data))
    pipeline, model = InlinePipeline(ties, data), reference(ties, data)
    assert models_tree(model).keys() == whole(pipeline)["model"].keys()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (1, 2, 3):  # in the second and third, gradients lie where those of the step before did
        pipeline.step(step)
        rows = np.concatenate(Batches(ties, len(data.train_y)).of_step(step))
        optimizer.zero_grad()
        loss_of(model(torch.from_numpy(data.train_x[rows])), torch.from_numpy(data.train_y[rows])).backward()
        optimizer.step()
    assert_close(whole(pipeline)["model"], models_tree(model))
    if chunks_of(schedule, 2) == 1:
        odd = setting("pp", [1, 1], model={"target": f"{__name__}:watched", "dtype": "float64"}, schedule=schedule)
        assert_close(pipeline_gradients(odd, data), plain_gradients(odd, data))


def test_a_users_own_loss_is_minimised() -> None:
    import toy_chain

    data = dataset()
    chosen = setting("pp", [2, 2], loss={"reduction": "mean", "target": "toy_chain:halves"})
    want = plain_gradients(chosen, data, loss=toy_chain.halves)
    assert_close(pipeline_gradients(chosen, data), want)


def trained(chosen: Settings, data: Dataset, steps: int = 20) -> tuple[dict[str, Any], list[float]]:
    pipeline = InlinePipeline(chosen, data)
    losses = [pipeline.step(number).loss for number in range(1, steps + 1)]
    return whole(pipeline), losses


ADAM = {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "kwargs": {}}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weights_after_twenty_steps_are_the_same_bits_for_any_number_of_stages(schedule: str) -> None:
    data, kinds = dataset(), "t(dpb)tp"
    states = []
    cuts = [[10], [4, 6], [3, 3, 4], [1, 3, 3, 3], [2, 2, 2, 2, 2]]
    if schedule == "zero-bubble-v":
        cuts = [[7, 3], [2, 2, 3, 3], [1, 2, 1, 2, 1, 3], [1, 1, 1, 1, 2, 1, 2, 1], [1] * 10]
    for stages, counts in enumerate(cuts, start=1):
        chosen = setting(
            kinds, counts, stages=stages, schedule=schedule, optimizer=ADAM, clip_norm=0.5, kwargs={"dropout": 0.3},
            learning_rate={"name": "cosine", "warmup_steps": 4, "final": 0.1},
        )  # fmt: skip
        states.append(trained(chosen, data))
    first, losses = states[0]
    assert losses[-1] < losses[0]
    for state, others in states[1:]:
        assert others == losses
        for tree, tensors in first.items():
            assert state[tree].keys() == tensors.keys()
            assert all(torch.equal(state[tree][name], tensors[name]) for name in tensors), tree


def test_twenty_steps_equal_plain_adamw_with_clipping_and_warm_up() -> None:
    data = dataset()
    chosen = setting(
        "(p)tt", [2, 3, 2], optimizer=ADAM, clip_norm=0.3,
        learning_rate={"name": "linear", "warmup_steps": 3, "final": 0.2},
    )  # fmt: skip
    state, _ = trained(chosen, data)
    model = reference(chosen, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    batches = Batches(chosen, len(data.train_y))
    for step in range(1, 21):
        (rows,) = batches.of_step(step)
        factor = step / 4 if step <= 3 else 1 - 0.8 * (step - 3) / 17
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.zero_grad()
        loss_of(model(torch.from_numpy(data.train_x[rows])), torch.from_numpy(data.train_y[rows])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
    # torch's clipping adds 1e-6 to the norm, ours does not.
    assert_close({name: state["model"][name] for name in models_tree(model)}, models_tree(model), 1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_recomputation_changes_no_bits_with_dropout_and_leaves_the_global_stream(schedule: str) -> None:
    data = dataset()
    states = []
    for recompute in (("never",) * 3, ("always",) * 3, ("except-last",) * 3, ("always", "never", "except-last")):
        torch.manual_seed(1)
        counts = [1, 2, 1, 2, 1, 2] if schedule == "zero-bubble-v" else [3, 3, 3]
        chosen = setting(
            "pdb(d)b", counts, stages=3, schedule=schedule, recompute=recompute, kwargs={"dropout": 0.5}
        )  # fmt: skip
        states.append(trained(chosen, data, 4))
        torch.manual_seed(1)
        before = torch.get_rng_state()
        trained(chosen, data, 1)
        assert torch.equal(torch.get_rng_state(), before)
    for state, losses in states[1:]:
        assert losses == states[0][1]
        for tree, tensors in states[0][0].items():
            assert all(torch.equal(state[tree][name], tensors[name]) for name in tensors), tree


@pytest.mark.parametrize("microbatches, batch_size", [(1, 13), (4, 13), (4, 9), (3, 7), (6, 13)])
@pytest.mark.parametrize("recompute", ["never", "always"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_equal_one_update_by_the_whole_batch(
    microbatches: int, batch_size: int, recompute: str, momentum: float | None
) -> None:
    data = dataset()
    chosen = setting("b", [1, 2], microbatches=microbatches, batch_size=batch_size, recompute=(recompute,) * 2)
    pipeline = InlinePipeline(chosen, data)
    model = reference(chosen, data)
    assert isinstance(model.layers[1], nn.BatchNorm1d)
    for rank in pipeline.ranks:
        for chunk in rank.chunks:
            for norm in chunk.norms:
                norm.layer.momentum = momentum
    model.layers[1].momentum = momentum
    batches = Batches(chosen, len(data.train_y))
    for step in (1, 2, 3, 4):
        (rows,) = batches.of_step(step)
        before = whole(pipeline)["model"]
        model.load_state_dict({**model.state_dict(), **{k: v.clone() for k, v in before.items()}})
        with torch.no_grad():
            model.train()(torch.from_numpy(data.train_x[rows]))
        pipeline.step(step)
        got = whole(pipeline)
        for name in ("layers.1.running_mean", "layers.1.running_var"):
            assert torch.allclose(got["model"][name], model.state_dict()[name], rtol=1e-12, atol=1e-14), name
        assert int(got["counters"]["layers.1.num_batches_tracked"]) == step


def test_a_run_goes_on_with_another_number_of_stages() -> None:
    data, kinds = dataset(), "t(db)tp"
    straight = setting(kinds, [3, 6], optimizer=ADAM, kwargs={"dropout": 0.2})
    want, _ = trained(straight, data, 10)
    first = InlinePipeline(straight, data)
    for number in range(1, 5):
        first.step(number)
    second = InlinePipeline(straight._replace(stages=3, layers=(2, 3, 4), recompute=("never",) * 3), data)
    for rank in second.ranks:
        restore(rank, whole(first))
    for number in range(5, 11):
        second.step(number)
    got = whole(second)
    for tree, tensors in want.items():
        assert all(torch.equal(got[tree][name], tensors[name]) for name in tensors), tree


def test_a_run_goes_on_with_a_folded_model_and_back() -> None:
    # both zero-bubble schedules add the micro-batches' gradients in their order, so that even the bits are the same
    data, kinds = dataset(), "t(db)tp"
    straight = setting(
        kinds, [3, 6], schedule="zero-bubble", optimizer=ADAM, kwargs={"dropout": 0.2}, clip_norm=0.5
    )  # fmt: skip
    want, _ = trained(straight, data, 9)
    folded = straight._replace(schedule="zero-bubble-v", stages=3, layers=(1, 2, 1, 1, 2, 2), recompute=("never",) * 3)
    state: Any = None
    for chosen, steps in ((straight, (1, 2, 3)), (folded, (4, 5, 6)), (straight, (7, 8, 9))):
        pipeline = InlinePipeline(chosen, data)
        if state:
            pipeline.restore(state)
        for number in steps:
            pipeline.step(number)
        state = whole(pipeline)
    for tree, tensors in want.items():
        assert all(torch.equal(state[tree][name], tensors[name]) for name in tensors), tree


def test_evaluation_goes_through_the_pipeline() -> None:
    data = dataset()
    chosen = setting("(p)b", [2, 1, 1, 2], stages=2, schedule="zero-bubble-v")
    pipeline = InlinePipeline(chosen, data)
    model = reference(chosen, data).eval()
    logits, y = model(torch.from_numpy(data.test_x)), torch.from_numpy(data.test_y)
    for size in (1, 4, 100):
        result = pipeline.evaluate(size)
        assert result.loss == pytest.approx(float(loss_of(logits, y).detach()), rel=1e-12)
        assert result.accuracy == pytest.approx(float((logits.argmax(-1) == y).double().mean()))


def test_bf16_trains_and_its_boundaries_are_half_as_wide() -> None:
    data = dataset()
    chosen = setting("pp", [2, 2], precision="bf16")
    chosen = chosen._replace(model={**chosen.model, "dtype": "float32"})
    pipeline = InlinePipeline(chosen, data)
    losses = [pipeline.step(number).loss for number in range(1, 21)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for rank in pipeline.ranks for _, p in rank.part.own)


@pytest.mark.parametrize("name", ["transformer", "resnet", "mlp", "cnn"])
def test_the_built_in_models_are_chains_that_compute_what_they_compute(name: str) -> None:
    from trainers.pipeline.layers import chain

    tokens = name == "transformer"
    section = {"name": name, "dtype": "float64"}
    model = models.build(section, input_shape=(9,) if tokens else (1, 8, 8), num_classes=4, seed=1).eval()
    x = torch.randint(4, (3, 9)) if tokens else torch.randn(3, 1, 8, 8, dtype=torch.float64)
    value = x
    for layer in chain(model).layers:
        value = layer.module(value)
    assert torch.equal(value, model(x))
