"""Models: shapes, sizes, the same bits from the same seed, and refusals that name what would fit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from trainers import models
from trainers.batched.chain import parse
from trainers.data import Dataset
from trainers.models import ModelError, build, check

IMAGE, FEATURES, TOKENS = (1, 28, 28), (20,), (16,)
FITTING = [
    ({"name": "logistic"}, FEATURES),
    ({"name": "logistic"}, IMAGE),
    ({"name": "mlp", "hidden": [30, 20], "dropout": 0.1}, FEATURES),
    ({"name": "mlp", "hidden": []}, IMAGE),
    ({"name": "cnn"}, IMAGE),
    ({"name": "cnn", "filters": [4, 8, 8], "dense": 16, "dropout": 0.5}, (3, 32, 24)),
    ({"name": "bristle-cnn"}, IMAGE),
    ({"name": "bristle-cnn"}, (3, 5, 9)),
    ({"name": "resnet", "depth": 8}, IMAGE),
    ({"name": "resnet", "depth": 14, "width": 6, "norm": "batch"}, (3, 9, 7)),
    ({"name": "resnet", "depth": 8, "width": 4, "shortcut": "convolution"}, IMAGE),
    ({"name": "vgg", "width": 4}, IMAGE),
    ({"name": "vgg", "depth": 16, "width": 2, "norm": "batch", "dense": 6}, (3, 32, 16)),
    ({"name": "transformer", "dropout": 0.1}, TOKENS),
    ({"name": "vit", "depth": 2, "width": 24, "dropout": 0.1}, IMAGE),
    ({"name": "vit", "depth": 1, "width": 24, "pool": "mean", "attention": "plain", "patch": 7}, IMAGE),
]


def batch_for(shape, size=3):
    if shape == TOKENS:
        return torch.randint(7, (size, *shape), generator=torch.Generator().manual_seed(0))
    return torch.randn(size, *shape, generator=torch.Generator().manual_seed(0))


def dataset(shape, num_classes=7):
    tokens = shape == TOKENS
    x = batch_for(shape).numpy()
    y = x if tokens else np.zeros(3, np.int64)
    return Dataset("made-up", "language-model" if tokens else "classification", x, y, x, y, num_classes, shape)


@pytest.fixture(params=FITTING, ids=lambda case: f"{case[0]['name']}-{'x'.join(map(str, case[1]))}")
def case(request):
    return request.param


def test_a_model_returns_one_logit_a_class_and_trains(case) -> None:
    section, shape = case
    model = build(section, input_shape=shape, num_classes=7, seed=1)
    logits = model(batch_for(shape))
    assert logits.shape == ((3, 16, 7) if shape == TOKENS else (3, 7))
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(case) -> None:
    section, shape = case
    first, again, other = (build(section, input_shape=shape, num_classes=7, seed=seed) for seed in (1, 1, 2))
    pairs = list(zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert all(torch.equal(left, right) for left, right in pairs)
    assert any(not torch.equal(left, right) for left, right in zip(first.parameters(), other.parameters(), strict=True))


def test_building_leaves_the_global_generator_alone(case) -> None:
    section, shape = case
    before = torch.get_rng_state()
    build(section, input_shape=shape, num_classes=7, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_dtype_is_the_sections(case) -> None:
    section, shape = case
    model = build({**section, "dtype": "float64"}, input_shape=shape, num_classes=7, seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    check(model, dataset(shape), section)


@pytest.mark.parametrize(
    ("section", "shape", "num_classes", "num_parameters"),
    [
        ({"name": "logistic"}, IMAGE, 10, 7850),
        ({"name": "mlp", "hidden": [200, 200]}, IMAGE, 10, 199_210),  # the 2NN of McMahan et al. 2017, section 3
        ({"name": "cnn"}, IMAGE, 10, 421_642),
        ({"name": "bristle-cnn"}, IMAGE, 10, 20_810),  # 8,000 of them in its output layer
        ({"name": "resnet", "depth": 20, "norm": "batch"}, (3, 32, 32), 10, 269_722),  # 0.27M, He et al. 2015, table 6
        ({"name": "resnet", "depth": 56, "norm": "batch"}, (3, 32, 32), 10, 853_018),  # 0.85M
        ({"name": "resnet", "depth": 32, "norm": "batch", "shortcut": "convolution"}, (3, 32, 32), 10, 466_906),
        ({"name": "resnet", "depth": 110, "norm": "batch", "shortcut": "convolution"}, (3, 32, 32), 10, 1_730_714),
        ({"name": "vgg", "depth": 13, "norm": "batch"}, (3, 32, 32), 10, 9_413_066),
    ],
)
def test_sizes_are_the_published_ones(section, shape, num_classes, num_parameters) -> None:
    model = build(section, input_shape=shape, num_classes=num_classes, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_the_residual_network_has_as_many_weight_layers_as_its_depth() -> None:
    model = build({"name": "resnet", "depth": 32}, input_shape=(3, 32, 32), num_classes=10, seed=0)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 32


def test_attention_of_the_vision_transformer_is_the_same_fused_and_plain() -> None:
    section = {"name": "vit", "depth": 2, "width": 24, "dtype": "float64"}
    fused, plain = (
        build({**section, "attention": kind}, input_shape=IMAGE, num_classes=7, seed=0) for kind in ("fused", "plain")
    )
    x = torch.randn(3, *IMAGE, dtype=torch.float64)
    torch.testing.assert_close(fused(x), plain(x))
    assert sum(parameter.numel() for parameter in fused.parameters()) == 24 * 17 + 24 * 51 + 2 * (
        12 * 576 + 13 * 24
    ) + (2 * 24 + 25 * 7)


def test_the_transformer_sees_no_later_token() -> None:
    model = build({"name": "transformer", "dtype": "float64"}, input_shape=TOKENS, num_classes=7, seed=0).eval()
    tokens = batch_for(TOKENS)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 7
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :9], after[:, :9], rtol=0, atol=1e-12)
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=(0, 2)).min() > 1e-6


def test_channels_last_weights_give_the_numbers_of_the_default_layout() -> None:
    model = build({"name": "cnn", "dtype": "float64"}, input_shape=IMAGE, num_classes=10, seed=0)
    plain = build({"name": "cnn", "dtype": "float64"}, input_shape=IMAGE, num_classes=10, seed=0)
    plain = plain.to(memory_format=torch.contiguous_format)
    x = batch_for(IMAGE).double()
    assert torch.allclose(model(x), plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("section", "shape", "said", "hint"),
    [
        ({"name": "cnn"}, FEATURES, "model cnn needs images", "mlp or logistic"),
        ({"name": "resnet"}, FEATURES, "model resnet needs images", "mlp or logistic"),
        ({"name": "cnn", "filters": [4] * 5}, IMAGE, "5 filters, each followed by halving", "at most 4 filters"),
        ({"name": "cnn"}, (1, 1, 28), "images are 1 x 28", "mlp"),
        ({"name": "resnet", "depth": 18}, IMAGE, "depth 18, which is not 6 n", "nearest depth is 20"),
        ({"name": "resnet", "depth": 16}, IMAGE, "not 6 n", "nearest depth is 14"),
        ({"name": "resnet", "depth": 3}, IMAGE, "not 6 n", "nearest depth is 8"),
        ({"name": "resnet", "norm": "layer"}, IMAGE, "norm 'layer'", "batch and group"),
        ({"name": "resnet", "shortcut": "none"}, IMAGE, "shortcut 'none'", "identity and convolution"),
        ({"name": "vgg", "depth": 14}, IMAGE, "none of 11, 13, 16 and 19", "nearest is 13"),
        ({"name": "vgg", "norm": "layer"}, IMAGE, "norm 'layer'", "batch and group"),
        ({"name": "vgg"}, (1, 8, 8), "halves an image five times, but images are 8 x 8", "cnn"),
        ({"name": "vit", "patch": 5}, IMAGE, "patches of 5 x 5, images 28 x 28", "patch: 4 fits"),
        ({"name": "vit", "heads": 5}, IMAGE, "width 192, which 5 heads do not divide", "heads: 4 would fit"),
        ({"name": "vit"}, FEATURES, "needs images", "mlp or logistic"),
        ({"name": "transformer"}, IMAGE, "needs sequences of tokens", "cnn or resnet"),
        ({"name": "transformer", "heads": 5}, TOKENS, "width 64, which 5 heads do not divide", "heads: 4"),
        ({"name": "resnot"}, IMAGE, "unknown model", "did you mean resnet"),
        ({"target": "no_such_module:build"}, IMAGE, "no module 'no_such_module'", "installed packages"),
        ({"target": "torch.nn:Liner"}, IMAGE, "torch.nn has no Liner", "Linear"),
        ({"target": "torch.nn:Linear", "kwargs": {"width": 3}}, IMAGE, "cannot be called with", "kwargs"),
        (
            {"target": "torch.nn:Linear", "kwargs": {"in_features": "a", "out_features": 2}},
            IMAGE,
            "raised",
            "kwargs|with",
        ),
        ({"target": "torch.nn:ReLU"}, IMAGE, "module without parameters", "nothing to train"),
        ({"target": "collections:Counter"}, IMAGE, "returned Counter", "torch.nn.Module"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(section, shape, said, hint) -> None:
    with pytest.raises(ModelError) as caught:
        build(section, input_shape=shape, num_classes=10, seed=0)
    assert said in caught.value.message
    assert any(part in caught.value.hint for part in hint.split("|"))


def test_model_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(ModelError("message", "hint")))
    assert (error.message, error.hint) == ("message", "hint")


def test_own_models_receive_what_their_parameters_ask_for(tmp_path, monkeypatch) -> None:
    name = f"own_{tmp_path.name}_model"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "def full(input_shape, num_classes, bias): return nn.Linear(input_shape[0], num_classes, bias=bias)\n"
        "def bare(): return nn.Linear(20, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    full = {"target": f"{name}:full", "kwargs": {"bias": False, "num_classes": 4}}
    assert build(full, input_shape=FEATURES, num_classes=7, seed=0).weight.shape == (4, 20)
    assert build({"target": f"{name}:bare"}, input_shape=FEATURES, num_classes=7, seed=0).weight.shape == (3, 20)


def test_own_chains_of_torchs_layers_are_differentiated_by_hand_and_own_outputs_lose_what_is_beside_the_logits(
    tmp_path, monkeypatch
) -> None:
    name = f"own_{tmp_path.name}_logits"
    (tmp_path / f"{name}.py").write_text(
        "from types import SimpleNamespace\n"
        "from torch import nn\n"
        "def chain(): return nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 7))\n"
        "class Named(nn.Linear):\n"
        "    def forward(self, x): return SimpleNamespace(logits=super().forward(x), loss=None)\n"
        "def named(): return nn.Sequential(nn.ReLU(), Named(20, 7))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    chain, named = (
        build({"target": f"{name}:{which}"}, input_shape=FEATURES, num_classes=7, seed=0)
        for which in ("chain", "named")
    )
    assert parse(chain, FEATURES) is not None and parse(named, FEATURES) is None
    assert chain(batch_for(FEATURES)).shape == named(batch_for(FEATURES)).shape == (3, 7)


def test_a_trial_batch_passes_what_fits_and_changes_nothing(case) -> None:
    section, shape = case
    model = build(section, input_shape=shape, num_classes=7, seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    check(model, dataset(shape), section)
    assert model.training and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("section", "shape", "said"),
    [
        ({"name": "mlp"}, TOKENS, "does not fit made-up, a language-model task"),
        ({"name": "transformer"}, FEATURES, "does not fit made-up, a classification task"),
        ({"target": "torch.nn:Linear", "kwargs": {"in_features": 5, "out_features": 7}}, FEATURES, "cannot take"),
        ({"target": "torch.nn:Linear", "kwargs": {"in_features": 20, "out_features": 3}}, FEATURES, "returned shape"),
        ({"target": "torch.nn:LSTM", "kwargs": {"input_size": 20, "hidden_size": 7}}, FEATURES, "returned tuple"),
    ],
)
def test_a_trial_batch_catches_what_does_not_fit(section, shape, said) -> None:
    model = build(section, input_shape=shape, num_classes=7, seed=0)
    with pytest.raises(ModelError, match=said):
        check(model, dataset(shape), section)


def test_every_model_by_name_is_tested_here() -> None:
    named = {section["name"] for section, _ in FITTING}
    assert named | set(models.GRAPH_NAMES) == set(models.NAMES)  # those of graphs are tested in test_graph_layers.py


@pytest.mark.parametrize(("shape", "features"), [(IMAGE, 800), ((1, 8, 8), 800), ((3, 32, 32), 1250), ((1, 3, 3), 450)])
def test_bristle_s_network_has_a_body_and_an_output_layer_without_a_bias(shape, features) -> None:
    model = build({"name": "bristle-cnn"}, input_shape=shape, num_classes=10, seed=0)
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert sizes["output.weight"] == (10, features)
    assert sorted(name for name in sizes if not name.startswith("body.")) == ["output.weight"]
