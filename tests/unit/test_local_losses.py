"""DGL's and PredSim's losses against their formulas; what a saved-tensor count counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from strategies.local import rule
from strategies.local.dgl import mlp_sr
from strategies.local.memory import Saved, backward_bytes
from strategies.local.predsim import pooled, similarity


def test_similarity_is_the_cosine_of_rows_without_their_mean() -> None:
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.corrcoef(x)
    assert torch.allclose(similarity(x), expected, rtol=0, atol=1e-7)


def test_images_count_by_their_channels_spread_unless_they_are_few_or_small() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, 3, generator=generator)
    assert torch.equal(similarity(x), similarity(x.flatten(2).std(dim=2)))
    for shape in ((4, 3, 3, 3), (4, 6, 1, 1)):
        x = torch.randn(*shape, generator=generator)
        assert torch.equal(similarity(x), similarity(x.flatten(1)))


def test_the_similarity_of_rows_that_are_all_one_number_has_a_gradient() -> None:
    x = torch.zeros(3, 5, requires_grad=True)
    similarity(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    images = torch.ones(3, 5, 2, 2, requires_grad=True)
    similarity(images).square().sum().backward()
    assert torch.isfinite(images.grad).all()


def test_predsims_loss_is_the_papers() -> None:
    layer = nn.Linear(6, 8).double()
    modules = rule("predsim", beta=0.7).modules(
        [layer, nn.Linear(8, 3).double(), nn.Linear(3, 3).double()], num_classes=3, input_shape=(6,), seed=1
    )
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(9, 6, generator=generator, dtype=torch.float64), torch.arange(9) % 3
    modules[0]({"h": x}, y, 0)
    h = layer(x)
    aux = modules[0].auxiliary
    wanted = torch.corrcoef(one_hot(y, 3).double())
    seen = torch.corrcoef(h @ aux.compare[0].weight.T)
    loss = 0.3 * cross_entropy(aux.predict(h), y) + 0.7 * (seen - wanted).square().mean()
    assert modules[0].learn() == pytest.approx(float(loss.detach()), abs=1e-6)


def test_the_last_module_has_the_plain_cross_entropy() -> None:
    head = nn.Linear(8, 3)
    modules = rule("predsim").modules([nn.Linear(6, 8), nn.ReLU(), head], num_classes=3, input_shape=(6,), seed=1)
    x, y = torch.randn(9, 8, generator=torch.Generator().manual_seed(2)), torch.arange(9) % 3
    modules[-1]({"h": x}, y, 0)
    assert modules[-1].learn() == pytest.approx(float(cross_entropy(head(x.relu()), y).detach()))
    with pytest.raises(RuntimeError, match="learn\\(\\) has no batch"):
        modules[-1].learn()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((16, 32, 32), (16, 16)),
        ((32, 16, 16), (8, 16)),
        ((64, 8, 8), (8, 8)),
        ((3, 5, 5), (5, 5)),
        ((4100, 2, 2), (1, 1)),
    ],
)
def test_images_are_halved_in_turn_until_they_are_small_enough(shape, size) -> None:
    assert pooled(shape, 4096) == size


@pytest.mark.parametrize(("shape", "features"), [((16, 32, 32), 64), ((8, 3, 9), 16), ((12,), 12), ((5, 12), 12)])
@pytest.mark.parametrize("hidden", [2, 3])
def test_dgls_networks_have_its_layers_for_any_shape(shape, features, hidden) -> None:
    network = mlp_sr(shape, 10, hidden)
    convolutions = 3 * (shape[0] ** 2 + 2 * shape[0]) if len(shape) == 3 else 0
    affine = hidden * (features**2 + 2 * features) + 10 * features + 10
    assert sum(p.numel() for p in network.parameters()) == convolutions + affine
    assert network(torch.randn(4, *shape)).shape == (4, 10)
    sizes = [part.output_size for part in network if isinstance(part, nn.AdaptiveAvgPool2d)]
    small = tuple(math.ceil(side / 4) for side in shape[1:])
    assert sizes == ([small, tuple(min(side, 2) for side in small)] if len(shape) == 3 else [])


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("predsim", {"beta": 2.0}, "beta"), ("predsim", {"features": 0}, "features"), ("dgl", {"hidden": -1}, "hidden")],
)
def test_values_that_cannot_be_are_refused(name, arguments, said) -> None:
    with pytest.raises(ValueError, match=f"{said} must be"):
        rule(name, **arguments)


def test_saved_bytes_are_counted_once_and_until_they_are_let_go() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid())
    x = torch.zeros(5, 4)
    with Saved([model]) as saved:
        out = model(x)
        # the input, ReLU's output which the next layer's map saves again, and Sigmoid's output
        assert saved.now_bytes == saved.peak_bytes == 4 * (5 * 4 + 5 * 8 + 5 * 8)
        out.sum().backward()
        assert saved.now_bytes == 0
        with torch.no_grad():
            model(x)
    assert saved.peak_bytes == 400
    assert backward_bytes(nn.Sequential(nn.Linear(4, 3)), x, torch.zeros(5, dtype=torch.long)) >= 4 * (5 * 4 + 5 * 3)
