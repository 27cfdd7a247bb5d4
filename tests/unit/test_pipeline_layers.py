"""What a chain of layers is refused for: every message names the layer and says what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.models.base import ModelError
from trainers.pipeline.layers import chain


class Listed(nn.Module):
    """Returns what it is given from pipeline_layers()."""

    def __init__(self, entries: Any = None, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.entries = list(modules.values()) if entries is None else entries(self)

    def pipeline_layers(self) -> Any:
        return self.entries


class Skips(nn.Linear):
    def __init__(self, stashes: Any = (), pops: Any = ()) -> None:
        super().__init__(2, 2)
        self.stashes, self.pops = stashes, pops


class Numbers(nn.Module):
    """Its forward depends on the data, so it cannot be traced either."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.sum()) > 0 else x


class Nothing(nn.Module):
    pass


def refused(model: nn.Module) -> ModelError:
    with pytest.raises(ModelError) as caught:
        chain(model)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "model, message, hint",
    [
        (Numbers(), "Numbers is no chain of layers, and cannot be traced", "a method pipeline_layers()"),
        (Nothing(), "Nothing is no chain of layers, and cannot be traced", "a method pipeline_layers()"),
        (nn.Sequential(), "Sequential has no layers", "at least one"),
        (Listed(), "Listed has no layers", "at least one"),
    ],
)
def test_a_model_that_is_no_chain_is_refused(model: nn.Module, message: str, hint: str) -> None:
    error = refused(model)
    assert message in error.message
    assert hint in error.hint


def test_the_refusal_of_a_model_that_cannot_be_traced_names_the_line() -> None:
    assert "`return self.linear(x) if float(x.sum()) > 0 else x`" in refused(Numbers()).message


@pytest.mark.parametrize(
    "layers, message, hint",
    [
        (
            [Skips(stashes=("s",)), Skips(pops=("s",)), Skips(pops=("s",))],
            "layer 2 (c, Skips) pops 's', which layer 1 (b, Skips) has popped",
            "two names",
        ),
        ([Skips(), Skips(pops=("s",))], "layer 1 (b, Skips) pops 's', which no layer before it stashes", "stash it"),
        (
            [Skips(pops=("s",)), Skips(stashes=("s",))],
            "layer 0 (a, Skips) pops 's', which no layer before it stashes",
            "stash it",
        ),
        (
            [Skips(stashes=("s",), pops=("s",))],
            "layer 0 (a, Skips) pops 's', which no layer before it stashes",
            "stash it",
        ),
        ([Skips(stashes=("s",)), Skips()], "layer 0 (a, Skips) stashes 's', which no layer pops", "pop it"),
        (
            [Skips(stashes=("s",)), Skips(stashes=("s",)), Skips(pops=("s",))],
            "layer 1 (b, Skips) stashes 's', as layer 0 (a, Skips) does",
            "its own name",
        ),
        ([Skips(stashes="s"), Skips(pops="s")], "layer 0 (a, Skips) has stashes = 's'", 'stashes = ("name",)'),
        ([Skips(), Skips(pops=(1,))], "layer 1 (b, Skips) has pops = (1,)", 'pops = ("name",)'),
    ],
)
def test_skips_that_do_not_fit_are_refused(layers: list[nn.Module], message: str, hint: str) -> None:
    error = refused(Listed(**dict(zip("abc", layers, strict=False))))
    assert message in error.message
    assert hint in error.hint


def test_a_skip_stashed_and_popped_once_is_accepted() -> None:
    found = chain(Listed(a=Skips(stashes=("s", "t")), b=Skips(pops=["t"]), c=Skips(pops=("s",))))
    assert [(layer.stash, layer.pop) for layer in found.layers] == [(("s", "t"), ()), ((), ("t",)), ((), ("s",))]


def test_a_parameter_or_buffer_in_no_layer_is_named() -> None:
    error = refused(Listed(lambda model: [model.a], a=nn.Linear(2, 2), b=nn.Linear(2, 2)))
    assert error.message == "'b.weight' is in none of the model's 1 layers"
    assert error.hint == "put its module into a layer"
    model = Listed(a=nn.Linear(2, 2))
    model.register_buffer("scale", torch.ones(1))
    assert refused(model).message == "'scale' is in none of the model's 1 layers"


def test_a_layer_with_a_tensor_that_the_model_has_not_is_named() -> None:
    foreign = nn.BatchNorm1d(2, affine=False)
    error = refused(Listed(lambda model: [model.a, ("extra", foreign)], a=nn.Linear(2, 2)))
    assert "layer 1 (extra, BatchNorm1d) has a tensor 'running_mean' that the model has not" in error.message
    assert error.hint == "build layers from the model's own submodules"


@pytest.mark.parametrize(
    "junk, message",
    [
        (lambda model: 7, "pipeline_layers() of Listed returned int"),
        (lambda model: model.a, "pipeline_layers() of Listed returned Linear"),
        (lambda model: [model.a, torch.relu], "layer 1 in pipeline_layers() of Listed is builtin_function_or_method"),
        (lambda model: [model.a, None], "layer 1 in pipeline_layers() of Listed is NoneType: None"),
        (lambda model: "ab", "layer 0 in pipeline_layers() of Listed is str: 'a'"),
        (lambda model: [("a", "b")], "layer 0 in pipeline_layers() of Listed is (str, str): ('a', 'b')"),
        (lambda model: [(model.a, "a")], "layer 0 in pipeline_layers() of Listed is (Linear, str)"),
        (lambda model: [("a", model.a, 1)], "layer 0 in pipeline_layers() of Listed is tuple"),
        (lambda model: [(3, model.a)], "layer 0 in pipeline_layers() of Listed is (int, Linear)"),
        (lambda model: {"a": model.a}, "layer 0 in pipeline_layers() of Listed is str: 'a'"),
    ],
)
def test_junk_from_pipeline_layers_is_named_by_its_place(junk: Any, message: str) -> None:
    error = refused(Listed(junk, a=nn.Linear(2, 2)))
    assert message in error.message
    assert "a list of torch modules" in error.hint


def test_layers_are_named_as_given_or_as_the_model_calls_them() -> None:
    model = Listed(lambda model: [("first", model.a), model.b, nn.ReLU()], a=nn.Linear(2, 2), b=nn.Linear(2, 2))
    assert [layer.name for layer in chain(model).layers] == ["first", "b", "layer2"]


def test_sequentials_inside_a_sequential_are_opened() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2))))
    assert [layer.name for layer in chain(model).layers] == ["0", "1.0", "1.1.0"]


def test_a_module_of_torchs_own_is_one_layer() -> None:
    (layer,) = chain(nn.Linear(2, 2)).layers
    assert layer.name == "Linear"


def test_a_sequential_with_a_forward_of_its_own_is_traced() -> None:
    class Doubled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model, x = Doubled(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), torch.randn(3, 2)
    layers = chain(model).layers
    assert [layer.name for layer in layers] == ["0", "2"]
    assert torch.equal(layers[1].module(layers[0].module(x)), model(x))


def test_an_instance_norm_with_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)))
    with pytest.raises(ModelError, match=r"layer 1 .*moved? twice"):
        chain(model)
    assert len(chain(nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2))).layers) == 2
