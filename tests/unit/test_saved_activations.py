"""What autograd is given to keep: which tensors, how many bytes, once, and what gradients come of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainers import models
from trainers.activations import Packed, Saver, Saving, part_names, unused_patterns
from trainers.dropout import Dropout

EVERYTHING = {"min_elements": 1, "range": "own"}


def blocks(count: int = 6, width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(
        nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for _ in range(count)
    ))  # fmt: skip


def vit(**changes: Any) -> nn.Module:
    section = {"name": "vit", "patch": 4, "depth": 2, "width": 48, "heads": 3, **changes}
    return models.build(section, input_shape=(3, 32, 32), num_classes=10, seed=1)


class Watch:
    """The bytes that would be kept, each storage once, and what is kept of them; parameters left out."""

    def __init__(self, module: nn.Module) -> None:
        self._left_out = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self._plain: dict[int, Tensor] = {}
        self._kept: dict[int, tuple[object, int]] = {}
        self.names: list[str] = []

    def __call__(self, tensor: Tensor, packed: Packed) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._left_out:
            return
        self._plain[storage.data_ptr()] = tensor  # alive, so that its address stays its own
        if isinstance(packed, Tensor):
            self._kept[packed.untyped_storage().data_ptr()] = (packed, storage.nbytes())
        else:
            self._kept[id(packed.block)] = (packed.block, packed.num_bytes)

    @property
    def plain_bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._plain.values())

    @property
    def kept_bytes(self) -> int:
        return sum(count for _, count in self._kept.values())

    @property
    def num_left(self) -> int:
        return sum(isinstance(block, Tensor) and block.dtype.is_floating_point for block, _ in self._kept.values())


def trained(module: nn.Module, x: Tensor, memory: dict[str, Any], seed: int = 0) -> tuple[Tensor, Tensor, Watch]:
    """Return loss, gradient and what was kept."""
    saver, watch = Saver(memory, {0: ("body", module)}), Watch(module)
    saver.watch = watch
    with saver.microbatch(0, seed), saver.layer(0, [x]):
        loss = functional.cross_entropy(module(x).flatten(1)[:, :10], torch.arange(len(x)) % 10)
    module.zero_grad()
    loss.backward()
    return loss.detach(), flat_gradient(module), watch


def plain(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    module.zero_grad()
    loss = functional.cross_entropy(module(x).flatten(1)[:, :10], torch.arange(len(x)) % 10)
    loss.backward()
    return loss.detach(), flat_gradient(module)


def flat_gradient(module: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None])


def off(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def test_the_forward_pass_is_exact_and_a_quarter_of_the_bytes_is_kept() -> None:
    module, x = blocks(), torch.randn(16, 33, 32)
    loss, gradient = plain(module, x)
    got, rounded, watch = trained(module, x, {"groups": 4})
    assert torch.equal(got, loss)
    assert 3.8 < watch.plain_bytes / watch.kept_bytes <= 4
    assert functional.cosine_similarity(rounded, gradient, dim=0) > 0.9998 and off(rounded, gradient) < 0.024
    mean = torch.stack([trained(module, x, {"groups": 4}, seed)[1] for seed in range(16)]).mean(0)
    assert off(mean, gradient) < 1.3 * off(rounded, gradient) / 4  # 16 draws, no bias: a quarter


@pytest.mark.parametrize("attention", ["plain", "fused"])
def test_a_vision_transformer_keeps_a_quarter_with_either_attention(attention: str) -> None:
    module, x = vit(attention=attention), torch.randn(4, 3, 32, 32)
    loss, gradient = plain(module, x)
    got, rounded, watch = trained(module, x, {"groups": "heads"})
    assert torch.equal(got, loss) and off(rounded, gradient) < 0.05
    assert watch.plain_bytes / watch.kept_bytes > 3.5


def test_errors_of_gradients_fall_with_the_number_of_groups() -> None:
    module, x = blocks(2), torch.randn(16, 9, 32) * torch.linspace(0.1, 4, 32)
    _, gradient = plain(module, x)
    errors = [
        off(torch.stack([trained(module, x, {**EVERYTHING, "groups": groups}, seed)[1] for seed in range(4)]), gradient)
        for groups in (1, 8, 32)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_softmax_is_kept_once_and_its_input_not_at_all() -> None:
    """The authors' code keeps input and output; the output is read by softmax and by the product behind it."""
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    saver, kept = Saver(EVERYTHING, {0: ("a", nn.Identity())}), []
    saver.watch = lambda tensor, packed: kept.append(packed)
    with saver.microbatch(0, 0), saver.layer(0, [x]):
        (x * 2).softmax(-1) @ torch.randn(2, 3, 16, 8, requires_grad=True)
    softmax = [packed for packed in kept if packed.shape[-1] == 16]
    assert len(kept) == 3 and [tuple(packed.shape) for packed in softmax] == [(2, 3, 16, 16), (6, 16, 16)]
    assert softmax[0].block is softmax[1].block and softmax[0].kept.encoded.groups.number == 3  # by heads


def test_each_tensor_is_decoded_in_the_range_it_was_encoded_in() -> None:
    """The authors' code reads the ranges of the last forward at backward: earlier micro-batches are decoded wrongly."""
    module = nn.Linear(8, 3, bias=False)
    batches = [torch.randn(40, 8), 100 * torch.randn(40, 8), 0.01 * torch.randn(40, 8)]
    saver = Saver({"min_elements": 1}, {0: ("fc", module)})
    for _ in range(3):
        losses = []
        for number, x in enumerate(batches):
            with saver.microbatch(number, 7), saver.layer(0, [x]):
                losses.append(module(x).sum())
        for x, loss in zip(batches[:2], losses[:2], strict=True):
            module.zero_grad()
            loss.backward()
            want = x.sum(0).expand(3, 8)
            if not saver.running.moved:  # in its own range: 40 numbers, each off by less than a step of its range
                assert float((module.weight.grad - want).abs().max()) < 40 * float(x.max() - x.min()) / 255
            assert off(module.weight.grad, want) < 1  # and not in another's
        saver.commit()


def test_parameters_integers_masks_and_small_tensors_are_left_alone() -> None:
    module = nn.Sequential(nn.Embedding(50, 16), nn.LayerNorm(16), nn.Linear(16, 16), Dropout(0.5), nn.Linear(16, 4))
    tokens, kinds = torch.randint(50, (8, 40)), []
    saver = Saver({"min_elements": 100}, {0: ("lm", module)})
    saver.watch = lambda tensor, packed: kinds.append((tuple(tensor.shape), tensor.dtype, type(packed).__name__))
    with saver.microbatch(0, 0), saver.layer(0, [tokens]):
        module(tokens)
    held = [shape for shape, _, kind in kinds if kind == "Held"]
    assert held == [(8, 40, 16), (320, 16), (320, 16)]  # of LayerNorm, of both linear layers
    assert ((8, 40), torch.int64, "Tensor") in kinds
    assert [kind for shape, _, kind in kinds if shape == (8, 40, 1)] == ["Tensor", "Tensor"]  # LayerNorm's statistics
    assert [kind for _, dtype, kind in kinds if dtype == torch.bool] == ["Mask"]
    assert all(kind in ("Parameter", "Tensor") for shape, _, kind in kinds if len(shape) == 1 or shape == (16, 16))


def test_weights_that_autocast_has_cast_are_kept_as_they_are() -> None:
    module, x, kinds = nn.Linear(32, 32), torch.randn(64, 32, requires_grad=True), {}
    saver = Saver(EVERYTHING, {0: ("fc", module)})
    saver.watch = lambda tensor, packed: kinds.setdefault(tuple(tensor.shape), (tensor.dtype, type(packed).__name__))
    with torch.autocast("cpu", torch.bfloat16), saver.microbatch(0, 0), saver.layer(0, [x]):
        returned = module(x)
    assert kinds == {(64, 32): (torch.bfloat16, "Held"), (32, 32): (torch.bfloat16, "Tensor")}
    returned.float().sum().backward()
    assert off(module.weight.grad, x.detach().sum(0).expand(32, 32)) < 0.05


def test_a_tensor_that_changes_in_place_is_kept_as_it_was_each_time() -> None:
    x, w = torch.randn(50, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    saver = Saver({**EVERYTHING, "groups": "channels", "rounding": "nearest"}, {0: ("a", nn.Identity())})
    with saver.microbatch(0, 0), saver.layer(0, [x]):
        y = x * 1
        first = y @ w
        y.mul_(-3)
        second = y @ w
    (first.sum() + second.sum()).backward()
    assert off(w.grad, (x - 3 * x).sum(0).detach()[:, None].expand(8, 8)) < 0.02


def test_nothing_is_kept_outside_of_a_micro_batch_and_in_evaluation() -> None:
    module, x, seen = blocks(1), torch.randn(64, 32), []
    saver = Saver(EVERYTHING, {0: ("a", module)})
    saver.watch = lambda tensor, packed: seen.append(packed)
    with saver.layer(0, [x]):
        module(x)
    with saver.microbatch(0, 0), torch.no_grad(), saver.layer(0, [x]):
        module(x)
    assert not seen


def test_policies_go_by_the_names_of_parts() -> None:
    module, x = vit(attention="plain"), torch.randn(2, 3, 32, 32)
    layers = {0: ("vit", module)}
    left = {}
    for name, policy in {
        "all": None, "blocks": "blocks", "without softmax": {r"attention\.(softmax|dropped)$": "none"},
        "nothing": {"": "none"},
    }.items():  # fmt: skip
        saver, watch = Saver({**EVERYTHING, "layers": policy}, layers), Watch(module)
        saver.watch = watch
        with saver.microbatch(0, 0), saver.layer(0, [x]):
            module(x)
        left[name] = watch.kept_bytes
        assert watch.kept_bytes <= watch.plain_bytes
    assert left["all"] < left["blocks"] < left["nothing"] and left["all"] < left["without softmax"] < left["nothing"]
    names = part_names(layers)
    assert unused_patterns({"layers": {"blocks": "int8", "blok": "none"}}, names) == ["blok"]


@pytest.mark.parametrize("reentrant", [pytest.param(False, marks=pytest.mark.slow), True])
def test_checkpoints_inside_a_layer_compute_what_they_did(reentrant: bool) -> None:
    module, x = blocks(2), torch.randn(64, 32, requires_grad=True)
    loss, gradient = plain(module, x)
    saver = Saver(EVERYTHING, {0: ("a", module)})
    with saver.microbatch(0, 0), saver.layer(0, [x]):
        hidden = x
        for part in module:
            hidden = checkpoint(part, hidden, use_reentrant=reentrant)
        got = functional.cross_entropy(hidden[:, :10], torch.arange(64) % 10)
    module.zero_grad()
    got.backward()
    assert torch.equal(got.detach(), loss) and off(flat_gradient(module), gradient) < 0.03


def test_a_whole_model_trains_in_one_line_and_resumes_where_it_was() -> None:
    def run(steps: range, saving: Saving, module: nn.Module) -> None:
        for step in steps:
            for batch in range(2):
                x = torch.randn(16, 32, generator=torch.Generator().manual_seed(10 * step + batch))
                with saving(step, batch, x):
                    loss = module(x).square().mean()
                loss.backward()
            saving.commit()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.1 * parameter.grad
            module.zero_grad()

    memory, module = {"min_elements": 1}, blocks(2)
    saving = Saving(memory, module, seed=3, replica=1)
    run(range(1, 3), saving, module)
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ranges = saving.export()
    assert all(name.endswith("@1") for name in ranges["memory.alpha"])
    run(range(3, 5), saving, module)
    again = blocks(2)
    again.load_state_dict(weights)
    resumed = Saving(memory, again, seed=3, replica=1)
    resumed.restore(ranges)
    run(range(3, 5), resumed, again)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))
    nothing = Saving(None, module, seed=3)
    with nothing(1, 0, torch.randn(2, 32)):
        assert nothing.export() == {} and nothing.saver is None
