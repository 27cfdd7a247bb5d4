"""What ZeRO adds up of ranges over ranks, and what its plan counts of activations without running anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from strategies.activations import Range, Running
from trainers import models
from trainers.activations import Packed, Saver
from trainers.activations.counting import Counting

SECTION = {"activations": "int8", "min_elements": 64, "groups": 3}


def saw(running: Running, rank: int, width: int = 2) -> None:
    for batch in range(2):
        number = 10.0 * rank + batch
        running.use("0/in0", (batch, 0), Range(torch.full((width,), 1 + number), torch.arange(width) - number))


def test_processes_that_add_up_what_they_saw_remember_what_one_that_saw_all_does():
    ranks, alone = [Running(), Running()], Running()
    for _ in range(3):
        for rank, running in enumerate(ranks):
            saw(running, rank)
            for batch in range(2):
                number = 10.0 * rank + batch
                own = Range(torch.full((2,), 1 + number), torch.arange(2) - number)
                alone.use("0/in0", (2 * rank + batch, 0), own)
        widths = ranks[0].widths() | ranks[0].seen_widths() | ranks[1].seen_widths()
        total = ranks[0].sums(widths) + ranks[1].sums(widths)
        for running in ranks:
            running.commit_sums(widths, total, torch.device("cpu"))
        alone.commit()
    for tree, expected in zip(ranks[1].export(), alone.export(), strict=True):
        torch.testing.assert_close(tree, expected)
    assert all(torch.equal(ranks[0].export()[0][name], tensor) for name, tensor in ranks[1].export()[0].items())


def test_a_place_seen_by_one_process_only_or_in_another_width_moves_by_those_that_saw_it_so():
    one, other = Running(), Running()
    saw(one, 0)
    saw(other, 1, width=3)
    widths = one.seen_widths() | other.seen_widths()
    assert widths == {"0/in0": 3} and one.sums(widths).tolist() == [0.0] * 7
    total = one.sums(widths) + other.sums(widths)
    one.commit_sums(widths, total, torch.device("cpu"))
    assert one.export()[0]["0/in0"].tolist() == [11.5] * 3 and one.seen_widths() == {}
    one.commit_sums(one.widths(), one.sums(one.widths()), torch.device("cpu"))  # a step that saw nothing
    assert one.export()[0]["0/in0"].tolist() == [11.5] * 3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_shapes_alone_tell_what_is_kept(dropout: float):
    section = {"name": "transformer", "layers": 2, "heads": 2, "width": 24, "dropout": dropout, "dtype": "float32"}
    model = models.build(section, input_shape=(8,), num_classes=13, seed=1, whole_outputs=True)
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    with FakeTensorMode():
        tensors = {n: torch.empty(p.shape).requires_grad_() for n, p in model.named_parameters()}
        tokens = torch.empty(4, 8, dtype=torch.int64)
        counting = Counting(SECTION, model, tensors.values())
        with counting.count(tokens):
            torch.func.functional_call(model, tensors, (tokens,))
    now = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    assert now == hooks
    kept = Counting(SECTION, model, model.parameters())
    saver = Saver(SECTION, {0: ("", model)}, parts=True)
    saver.watch = kept.watch
    inputs = torch.randint(0, 13, (4, 8))
    with saver.microbatch(0, 7), saver.layer(0, (inputs,)):
        output = model(inputs)
    assert (counting.kept_bytes, counting.plain_bytes) == (kept.kept_bytes, kept.plain_bytes)
    assert counting.kept_bytes < 0.6 * counting.plain_bytes
    del output


def test_a_view_of_a_weight_is_kept_as_it_is_also_without_a_trace_in_autograd():
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.data.t()

    model, seen = Turned(), list[tuple[Tensor, Packed]]()
    saver = Saver({**SECTION, "min_elements": 1}, {0: ("", model)}, parts=True)
    saver.watch = lambda tensor, packed: seen.append((tensor, packed))
    with saver.microbatch(0, 7), saver.layer(0, ()):
        model(torch.randn(8, 16, requires_grad=True))
    packed = [what for tensor, what in seen if tensor.shape == (16, 16)]
    assert len(packed) == 1 and isinstance(packed[0], Tensor)
    assert packed[0].data_ptr() == model.weight.data_ptr()
