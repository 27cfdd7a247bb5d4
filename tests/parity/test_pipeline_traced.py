"""Models that are split by tracing: the same gradients, weights, names and modes as the model itself; or a refusal."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from strategies.pipeline import chunks_of
from strategies.seeds import integer
from trainers import models
from trainers.data.base import Dataset
from trainers.local import loss_of
from trainers.models.base import ModelError
from trainers.pipeline.inline import InlinePipeline
from trainers.pipeline.layers import chain
from trainers.pipeline.settings import Batches, Settings
from trainers.pipeline.state import whole
from trainers.pipeline.transport import Key, LocalTransport

FEATURES, CLASSES = 7, 3
NETS = ["Residual", "ResidualInPlace", "Branches", "Dense", "Reused", "Functional"]


@pytest.fixture(autouse=True)
def nets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("toy_nets")


def dataset(num_examples: int = 30) -> Dataset:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(num_examples, FEATURES)), rng.integers(CLASSES, size=num_examples)
    return Dataset("toy", "classification", x, y, x[:11], y[:11], CLASSES, (FEATURES,))


def model_of(chosen: Settings) -> nn.Module:
    return models.build(chosen.model, input_shape=(FEATURES,), num_classes=CLASSES, seed=chosen.model_seed)


def setting(net: str, stages: int, **changes: Any) -> Settings:
    model = {"target": "toy_nets:build", "kwargs": {"net": net, **changes.pop("kwargs", {})}, "dtype": "float64"}
    plain = {
        "model": model, "seed": 5, "model_seed": integer(5, "model"), "stages": stages, "replicas": 1,
        "schedule": "gpipe", "microbatches": 4, "layers": (), "recompute": ("never",) * stages, "batch_size": 13,
        "accumulate": 1, "optimizer": {"name": "sgd", "lr": 1.0, "kwargs": {}},
        "learning_rate": {"name": "constant", "warmup_steps": 0, "final": 0.0}, "clip_norm": None,
        "loss": {"reduction": "mean"}, "precision": None, "steps": 20, **changes,
    }  # fmt: skip
    num_layers = len(chain(model_of(Settings(**plain))).layers)
    num_positions = stages * chunks_of(plain["schedule"], 2)
    edges = np.linspace(0, num_layers, num_positions + 1).round().astype(int)
    return Settings(**{**plain, "layers": tuple(np.diff(edges).tolist())})


def plain_step(chosen: Settings, data: Dataset) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the model after one plain forward and backward of the first batch, and its gradients."""
    model = model_of(chosen)
    rows = np.concatenate(Batches(chosen, len(data.train_y)).of_step(1))
    loss_of(model(torch.from_numpy(data.train_x[rows])), torch.from_numpy(data.train_y[rows]), "mean").backward()
    return model, {name: p.grad for name, p in model.named_parameters()}


def through(model: nn.Module, x: Tensor) -> Any:
    """Run the pieces of a model one after the other."""
    for layer in chain(model).layers:
        x = layer.module(*(x if isinstance(x, tuple) else (x,)))
    return x


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("schedule, recompute", [("gpipe", "never"), ("1f1b", "always"), ("zero-bubble", "never")])
@pytest.mark.parametrize("net", NETS)
def test_gradients_equal_those_of_the_plain_model(net: str, schedule: str, recompute: str, stages: int) -> None:
    data = dataset()
    chosen = setting(net, stages, schedule=schedule, recompute=(recompute,) * stages)
    assert len(chosen.layers) == stages and min(chosen.layers) > 0
    _, gradients = plain_step(chosen, data)
    before = {name: p.detach().clone() for name, p in model_of(chosen).named_parameters()}
    pipeline = InlinePipeline(chosen, data)
    pipeline.step(1)
    after = whole(pipeline.ranks)["model"]
    for name, gradient in gradients.items():
        assert float((before[name] - after[name] - gradient).abs().max()) <= 1e-10, name


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("recompute", ["never", "always"])
def test_batch_norm_and_dropout_remain_modules_that_the_pipeline_defers(stages: int, recompute: str) -> None:
    data = dataset()
    chosen = setting("Norms", stages, microbatches=1, recompute=(recompute,) * stages)
    model, gradients = plain_step(chosen, data)
    before = {name: p.detach().clone() for name, p in model_of(chosen).named_parameters()}
    pipeline = InlinePipeline(chosen, data)
    assert sum(len(chunk.norms) for rank in pipeline.ranks for chunk in rank.chunks) == 2
    pipeline.step(1)
    state = whole(pipeline.ranks)
    for name, gradient in gradients.items():
        assert float((before[name] - state["model"][name] - gradient).abs().max()) <= 1e-10, name
    for name, buffer in model.named_buffers():
        got = {**state["model"], **state["counters"]}[name]
        assert torch.allclose(got, buffer, rtol=1e-12, atol=1e-14), name


def test_dropout_does_not_depend_on_stages_and_is_off_in_evaluation() -> None:
    data = dataset()
    states = []
    for stages in (1, 2, 3):
        chosen = setting("Norms", stages, kwargs={"dropout": 0.5}, optimizer={"name": "sgd", "lr": 0.1, "kwargs": {}})
        pipeline = InlinePipeline(chosen, data)
        for number in (1, 2, 3):
            pipeline.step(number)
        states.append(whole(pipeline.ranks))
        model = model_of(chosen)
        model.load_state_dict({**states[-1]["model"], **states[-1]["counters"]})
        logits = model.eval()(torch.from_numpy(data.test_x))
        want = float(loss_of(logits, torch.from_numpy(data.test_y)).detach())
        assert pipeline.evaluate(4).loss == pytest.approx(want, rel=1e-12)
    for state in states[1:]:
        assert all(torch.equal(state["model"][name], tensor) for name, tensor in states[0]["model"].items())


@pytest.mark.parametrize("training", [True, False])
def test_pieces_draw_what_the_model_draws_in_either_mode(nets: ModuleType, training: bool) -> None:
    model = nets.Norms(FEATURES, CLASSES, dropout=0.5).train(training)
    x = torch.randn(9, FEATURES)
    torch.manual_seed(1)
    want = model(x)
    for layer in chain(model).layers:
        layer.module.train(not training).train(training)
    torch.manual_seed(1)
    assert torch.equal(through(model, x), want)


@pytest.mark.parametrize("net", [*NETS, "Norms"])
def test_names_in_a_checkpoint_are_those_of_the_model(net: str) -> None:
    chosen = setting(net, 3)
    state = whole(InlinePipeline(chosen, dataset()).ranks)
    assert sorted([*state["model"], *state.get("counters", {})]) == sorted(model_of(chosen).state_dict())


@pytest.mark.parametrize(
    "net, names",
    [
        ("Residual", ["stem", "blocks.0.first", "blocks.1.first", "blocks.2.first", "head"]),
        ("ResidualInPlace", ["stem", "blocks.0.first", "blocks.1.first", "blocks.2.first", "head"]),
        ("Branches", ["stem", "a", "c", "b", "head"]),
        ("Dense", ["down", "deep", "up", "head"]),
        ("Reused", ["stem", "shared", "shared", "shared", "other", "other.weight", "head"]),
        ("Norms", ["stem", "norm", "middle", "head"]),
        ("Functional", ["first", "second", "scale", "last"]),
    ],
)
def test_pieces_are_cut_where_few_tensors_are_alive(nets: ModuleType, net: str, names: list[str]) -> None:
    model = nets.build((FEATURES,), CLASSES, net=net)
    if net == "Functional":
        model = model.double()
    assert [layer.name for layer in chain(model).layers] == names


def test_pieces_hold_the_models_own_modules_and_leave_it_as_it_was(nets: ModuleType) -> None:
    model = nets.build((FEATURES,), CLASSES, net="Functional").double()
    keys, state = set(model.__dict__), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = chain(model).layers
    assert set(model.__dict__) == keys
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    held = {id(t) for layer in layers for t in (*layer.module.parameters(), *layer.module.buffers())}
    assert held == own
    norms = nets.Norms(FEATURES, CLASSES).eval()
    modules = {id(m) for layer in chain(norms).layers for m in layer.module.modules()}
    assert {id(norms.norm), id(norms.again), id(norms.dropout), id(norms.stem)} <= modules
    assert not norms.training and not norms.norm.training


def test_a_layer_used_in_several_pieces_is_tied(nets: ModuleType) -> None:
    found = chain(nets.build((FEATURES,), CLASSES, net="Reused"))
    tied = {name: [use.layer for use in uses] for name, uses in found.tied().items()}
    assert tied == {"shared.weight": [1, 2, 3], "shared.bias": [1, 2, 3], "other.weight": [4, 5]}


def test_pieces_can_be_copied_as_a_rank_copies_tied_ones(nets: ModuleType) -> None:
    for net in (*NETS, "Norms"):
        model = nets.build((FEATURES,), CLASSES, net=net).double()
        x = torch.randn(5, FEATURES, dtype=torch.float64)
        value: Any = x
        for layer in chain(model).layers:
            value = copy.deepcopy(layer.module)(*(value if isinstance(value, tuple) else (value,)))
        assert torch.equal(value, model(x)), net


class Sized(nn.Module):
    """A size taken at the start is used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        return self.c(self.b(self.a(x)).reshape(size, 2, 2).flatten(1))


class Numbered(Sized):
    """A number taken out of a tensor at the start is used at the end."""

    def forward(self, x: Tensor) -> Tensor:
        number = x.sum().item()
        return self.c(self.b(self.a(x)) * number)


class Swapped(Sized):
    """Between a and c, the rows of what is alive are no examples."""

    def forward(self, x: Tensor) -> Tensor:
        turned = self.a(x).unsqueeze(1).transpose(0, 1)
        return self.c(self.b(self.b(turned)).transpose(0, 1).squeeze(1))


class Sliced(Sized):
    """A part of a buffer, of a size known at the start, is read by every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tril(torch.ones(9, 9)))

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask[: x.shape[1], : x.shape[1]] * 0.5
        return self.c(self.b(self.a(x) @ mask) @ mask)


class Splits(Sized):
    """A tuple of tensors is alive between all layers."""

    def forward(self, x: Tensor) -> Tensor:
        parts = self.a(x).chunk(2, dim=1)
        y = self.c(self.b(torch.cat([parts[1], parts[0]], dim=1)))
        return y[:, :2] * parts[0] + parts[1]


class Views(Sized):
    """A view taken before a layer is changed behind it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        left = y[:, :2]
        z = self.b(y * 2)
        left += 1
        return self.c(z + y)


@pytest.mark.parametrize(
    "kind, names, num_alive",
    [
        (Sized, ["a", "b", "c"], 2),  # the input travels too, for its size
        (Numbered, ["a", "c"], 1),
        (Splits, ["a", "b"], 1),
        (Views, ["a", "c"], 1),
        (Swapped, ["a", "b", "c"], 1),
        (Sliced, ["a", "b", "c"], 2),
    ],
)
def test_only_rows_of_examples_travel(kind: type[nn.Module], names: list[str], num_alive: int) -> None:
    model, value = kind(), torch.randn(3, 4)
    want = model(value)
    layers = chain(model).layers
    assert [layer.name for layer in layers] == names
    most = 0
    for layer in layers:
        value = layer.module(*(value if isinstance(value, tuple) else (value,)))
        tensors = value if isinstance(value, tuple) else (value,)
        most = max(most, len(tensors))
        assert all(len(tensor) == 3 for tensor in tensors)
    assert most == num_alive
    assert torch.equal(value, want)


class Attends(nn.Module):
    """Torch's own modules that return tuples, positions made in forward, and an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 4), nn.Embedding(6, 4)
        self.attend, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)
        self.recur = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        if mask is not None:
            x = x * mask
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        out, _ = self.recur(x)
        return torch.nn.functional.linear(out, self.tokens.weight)


def test_attention_recurrence_positions_and_a_tied_embedding_are_cut() -> None:
    model, x = Attends(), torch.randint(9, (2, 6))
    found = chain(model)
    assert [layer.name for layer in found.layers] == ["tokens", "attend", "norm", "recur", "tokens.weight"]
    assert list(found.tied()) == ["tokens.weight"]
    assert torch.equal(through(model, x), model(x))


class Unread(Sized):
    """Nobody reads what b returns, nor a gradient through its input, whose slope is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = (y * 0).sqrt()
        y += 1
        self.b(z)
        return self.c(y + z.detach())


def test_what_brings_no_gradient_in_the_model_brings_none_over_a_cut() -> None:
    model, x = Unread(), torch.ones(2, 4)
    first, *others = (layer.module for layer in chain(model).layers)
    carried = first(x)
    assert len(others) == 2 and [tensor.requires_grad for tensor in carried] == [False, True]
    value: Any = carried
    for piece in others:
        value = piece(*(value if isinstance(value, tuple) else (value,)))
    value.sum().backward()
    assert bool(model.a.weight.grad.isfinite().all())


class Glances(nn.Module):
    """Of what a stage sends on, one value, of infinite slope, is read behind the cut through detached views alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        root = (y * 0).sqrt()
        z = torch.tanh(self.b(y))
        return self.c(z + root.view(-1, 4).detach() + root[:, :1].detach())


def glances(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    torch.manual_seed(1)
    return Glances().double()


class Flat(nn.Module):
    """Begins with a layer without weights, which autograd does not follow, and hands a skip that nobody learns from."""

    stashes = ("side",)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1), x.cos()


class Wise(nn.Module):
    """Takes the skip, and learns from a part of it only if `learns`."""

    pops = ("side",)

    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.linear, self.learns = nn.Linear(FEATURES, CLASSES), learns

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.linear(x + (side if self.learns else side.detach()))


class Skipping(nn.Module):
    def __init__(self, learns: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Flat(), nn.Linear(FEATURES, FEATURES), Wise(learns)])

    def pipeline_layers(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        flat, side = self.layers[0](x)
        return self.layers[2](self.layers[1](flat), side)  # type: ignore[no-any-return]


def skipping(input_shape: tuple[int, ...], num_classes: int, learns: bool) -> nn.Module:
    torch.manual_seed(1)
    return Skipping(learns).double()


@pytest.mark.parametrize("recompute", ["never", "always"])
@pytest.mark.parametrize("schedule", ["gpipe", "zero-bubble"])
@pytest.mark.parametrize(
    "name, kwargs", [("glances", {}), ("skipping", {"learns": True}), ("skipping", {"learns": False})]
)
def test_gradients_come_back_for_what_autograd_brings_one_and_nothing_else(
    name: str, kwargs: dict[str, Any], schedule: str, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detached view got zeros, of which a root makes NaN; and ranks sent gradients that the other did not expect."""
    told: dict[str, dict[Key, list[str]]] = {"expected": {}, "sent": {}}
    expect, send = LocalTransport.expect, LocalTransport.send

    def expecting(self: LocalTransport, key: Key, specs: Any, source: int) -> None:
        told["expected"][key] = [spec.name for spec in specs]
        expect(self, key, specs, source)

    def sending(self: LocalTransport, key: Key, tensors: dict[str, Tensor], target: int) -> None:
        told["sent"][key] = list(tensors)
        send(self, key, tensors, target)

    monkeypatch.setattr(LocalTransport, "expect", expecting)
    monkeypatch.setattr(LocalTransport, "send", sending)
    model = {"target": f"{__name__}:{name}", "kwargs": kwargs, "dtype": "float64"}
    chosen, data = setting("Residual", 3, schedule=schedule, recompute=(recompute,) * 3), dataset()
    chosen = chosen._replace(model=model, layers=(1, 1, 1))
    _, gradients = plain_step(chosen, data)
    before = {name: p.detach().clone() for name, p in model_of(chosen).named_parameters()}
    pipeline = InlinePipeline(chosen, data)
    pipeline.step(1)
    after = whole(pipeline.ranks)["model"]
    for each, gradient in gradients.items():
        assert float((before[each] - after[each] - gradient).abs().max()) <= 1e-10, each
    assert told["sent"] == told["expected"]
    if name == "skipping":
        assert all(not names for key, names in told["sent"].items() if key[:2] == ("B", 0))


@pytest.mark.parametrize(
    "net, words",
    [
        ("Chooses", ["Chooses is no chain", "toy_nets.py, line", "`if x.sum() > 0:`", "control flow"]),
        ("Iterates", ["inner.deep (Each)", "`return torch.stack([row * 2 for row in x])`", "iterated"]),
        ("Modal", ["`x = x + torch.rand_like(x)`", "training and evaluation do other things", "nn.Dropout"]),
        ("Noisy", ["Noisy draws random numbers", "torch.rand_like(x)"]),
        ("Counts", ["changes seen in place", "`self.seen.add_(x.shape[0])`"]),
        ("OwnNorm", ["changes mean in place", "batch_norm"]),
        ("InputChanged", ["changes the model's input in place", "`x -= 1`"]),
        ("Turns", ["changes a shape in place", "`x.t_()`"]),
        ("Collects", ["changes a tensor of its own making in place", "`collected[:, 0] = self.stem(x)[:, 0]`"]),
        ("Remembers", ["forward of Remembers changes its own calls"]),
        ("NormTwice", ["runs norm (BatchNorm1d) twice", "a norm of its own"]),
        ("Unused", ["'forgotten.weight' takes no part in the forward of Unused"]),
        ("Dictionary", ["returns a dict", "tensor or a tuple of tensors"]),
        ("TwoInputs", ["cannot be called with one tensor", "'y'"]),
    ],
)
def test_what_cannot_be_traced_faithfully_is_refused(nets: ModuleType, net: str, words: list[str]) -> None:
    model = nets.build((FEATURES,), CLASSES, net=net)
    before = torch.get_rng_state()
    with pytest.raises(ModelError) as caught:
        chain(model)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    if net not in ("NormTwice", "Dictionary", "Noisy"):
        assert "pipeline_layers()" in caught.value.hint
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and "_tensor_constant0" not in model.__dict__


@settings(max_examples=60, deadline=None)
@given(
    program=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=14),
    stages=st.integers(1, 4),
    recompute=st.sampled_from(["never", "always"]),
    schedule=st.sampled_from(["gpipe", "zero-bubble", "zero-bubble-v"]),
)
@example(
    program=[(9, 0, 0), (7, 0, 0), (0, 3, 0), (0, 0, 0), (0, 0, 0), (8, 0, 3), (0, 0, 0)],
    stages=4,
    recompute="never",
    schedule="gpipe",
)
@example(
    program=[(0, 2, 2), (8, 2, 1), (4, 1, 0), (7, 2, 0), (10, 1, 2), (1, 1, 2), (9, 3, 3), (3, 0, 1), (4, 0, 1)],
    stages=3, recompute="never", schedule="zero-bubble",
)  # fmt: skip
def test_random_programs_are_computed_as_written(
    program: list[tuple[int, int, int]], stages: int, recompute: str, schedule: str
) -> None:
    """Also where values are changed in place while others are views of them; what torch itself refuses is left out."""
    data, kwargs = dataset(), {"program": [list(step) for step in program]}
    chosen = setting("Program", 1, kwargs=kwargs)
    stages = min(stages, sum(chosen.layers) // chunks_of(schedule, 2)) or 1
    schedule = "gpipe" if sum(chosen.layers) < chunks_of(schedule, 2) else schedule
    chosen = setting("Program", stages, kwargs=kwargs, schedule=schedule, recompute=(recompute,) * stages)
    try:
        _, gradients = plain_step(chosen, data)
    except RuntimeError:
        reject()
    before = {name: p.detach().clone() for name, p in model_of(chosen).named_parameters()}
    pipeline = InlinePipeline(chosen, data)
    pipeline.step(1)
    after = whole(pipeline.ranks)["model"]
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((before[name] - after[name] - gradient).abs().max()) <= 1e-10 * scale, name
