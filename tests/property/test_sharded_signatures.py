"""Every legal signature, on pieces cut here: what ranks compute from theirs, put together, is the dense result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from strategies.sharded import KINDS, Operator, Placement, Signature, Split, is_even, signatures
from strategies.sharded.placements import Broadcast, dual

SIZES = st.integers(1, 7)


def pieces(whole: Tensor, placement: Placement, ranks: int) -> list[Tensor]:
    """What each rank holds."""
    if isinstance(placement, Broadcast):
        return [whole] * ranks
    if isinstance(placement, Split):
        each = [part.tensor_split(ranks, placement.dim) for part in whole.chunk(placement.parts, placement.dim)]
        return [torch.cat([part[rank] for part in each], placement.dim) for rank in range(ranks)]
    noise = [torch.randn_like(whole) for _ in range(ranks - 1)]
    return [*noise, whole - sum(noise)]


def together(held: Sequence[Tensor], placement: Placement) -> Tensor:
    if isinstance(placement, Broadcast):
        for other in held[1:]:
            torch.testing.assert_close(other, held[0], rtol=0, atol=1e-10)
        return held[0]
    if isinstance(placement, Split):
        each = [part.chunk(placement.parts, placement.dim) for part in held]
        return torch.cat([torch.cat(rows, placement.dim) for rows in zip(*each, strict=True)], placement.dim)
    return sum(held[1:], held[0])


def operators(a: int, b: int, c: int, d: int) -> dict[str, tuple[Operator, Callable[..., Tensor], list[Tensor]]]:
    """One operator of each kind, what it computes, and inputs, of sizes that may be odd, or 1."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    def made(kind: str, inputs: list[Tensor], compute: Callable[..., Tensor], **arguments: Any) -> Any:
        shapes, out = tuple(tuple(t.shape) for t in inputs), tuple(compute(*inputs).shape)
        op = Operator(kind, tuple(f"x{i}" for i in range(len(inputs))), "y", shapes, out, arguments)
        return op, compute, inputs

    tokens = torch.randint(0, a, (b, c))
    return {
        "matmul": made("matmul", [draw(a, b), draw(b, c)], torch.matmul),
        "batched": made("matmul", [draw(d, a, b), draw(d, b, c)], torch.matmul),
        "linear": made("linear", [draw(c), draw(a, b), draw(b, c)], torch.addmm),
        "pointwise": made("pointwise", [draw(a, b)], functional.gelu),
        "linear-pointwise": made("linear-pointwise", [draw(a, b)], lambda x: 3 * x),
        "add": made("add", [draw(a, b, c), draw(b, 1)], torch.add),
        "mul": made("mul", [draw(a, b), draw(a, b)], torch.mul),
        "layer-norm": made(
            "layer-norm", [draw(a, b, c), draw(c), draw(c)], lambda x, w, v: functional.layer_norm(x, [c], w, v), dims=1
        ),
        "softmax": made("softmax", [draw(a, b, c)], lambda x: x.softmax(1), dim=1),
        "attention": made("attention", [draw(a, b, c, d) for _ in range(3)], functional.scaled_dot_product_attention),
        "permute": made("permute", [draw(a, b, c)], lambda x: x.permute(2, 0, 1), dims=(2, 0, 1)),
        "select": made("select", [draw(a, b, c)], lambda x: x.select(1, 0), dim=1),
        "narrow": made("narrow", [draw(a, b, c)], lambda x: x[:, :1], dim=1),
        "sum": made("sum", [draw(a, b, c)], lambda x: x.sum((0, 2)), dims=(0, 2)),
        "by-example": made("by-example", [draw(a, 1, 4, 4), draw(2, 1, 3, 3)], functional.conv2d),
        "embedding": made("embedding", [draw(a, d), tokens], lambda table, i: functional.embedding(i, table)),
        "loss": made("loss", [draw(a, d), torch.randint(0, d, (a,))], summed),
    }  # fmt: skip


def summed(logits: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(logits, classes, reduction="sum")


def run(
    op: Operator, compute: Callable[..., Tensor], held: Sequence[Tensor], rank: int, signature: Signature
) -> Tensor:
    """One rank's part: its pieces through the operator, but for the two that must know where their piece is."""
    if op.kind == "embedding" and signature.inputs[0] == Split(0):
        table, indices = held
        start = run.starts[rank]  # type: ignore[attr-defined]
        mine = (indices >= start) & (indices < start + len(table))
        safe = (indices - start).clamp(0, max(0, len(table) - 1))
        return functional.embedding(safe, table) * mine[..., None] if len(table) else torch.zeros(*op.shape).double()
    if signature.added is not None and rank:
        held = [torch.zeros_like(t) if place == signature.added else t for place, t in enumerate(held)]
    return compute(*held)


@settings(max_examples=8, deadline=None)
@given(SIZES, SIZES, SIZES, SIZES, st.integers(2, 4), st.integers(0, 99))
def test_every_legal_signature_on_pieces_of_any_size_equals_the_dense_result(a, b, c, d, ranks, seed) -> None:
    torch.manual_seed(seed)
    tried = set()
    for name, (op, compute, inputs) in operators(a, b, c, d).items():
        dense = compute(*inputs)
        for signature in signatures(op):
            tried.add(name)
            held = [pieces(t, p, ranks) for t, p in zip(inputs, signature.inputs, strict=True)]
            run.starts = np.cumsum([0, *(len(t) for t in held[0])])  # type: ignore[attr-defined]
            if any(0 in t.shape for own in held for t in own) and op.kind in ("by-example", "attention"):
                continue  # torch's convolutions and attention refuse empty pieces
            outs = [run(op, compute, [own[rank] for own in held], rank, signature) for rank in range(ranks)]
            torch.testing.assert_close(
                together(outs, signature.output),
                dense,
                rtol=0,
                atol=1e-10,
                msg=lambda m, n=name, s=signature: f"{n} {s}: {m}",
            )
    assert len(tried) == 17


RESHAPES = [((6, 4), (24,)), ((24,), (6, 4)), ((4, 6), (2, 2, 6)), ((2, 12), (2, 3, 4)), ((2, 3, 4), (2, 12)),
            ((4, 6, 8), (24, 8)), ((24, 8), (4, 6, 8)), ((2, 1, 4), (2, 4)), ((2, 4), (2, 1, 4)), ((8, 3), (3, 8)),
            ((2, 36), (2, 3, 4, 3))]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), RESHAPES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_split_that_passes_a_reshape_holds_the_same_numbers_after_it(before, after, ranks) -> None:
    op = Operator("reshape", ("x",), "y", (before,), after)
    whole = torch.arange(np.prod(before)).reshape(before)
    for signature in signatures(op, (1, 3)):
        if is_even(op, signature, ranks) and isinstance(signature.output, Split):
            held = pieces(whole, signature.inputs[0], ranks)
            wanted = pieces(whole.reshape(after), signature.output, ranks)
            for own, expected in zip(held, wanted, strict=True):
                assert torch.equal(own.reshape(expected.shape), expected), signature


def test_three_matrices_one_behind_the_other_are_split_by_heads() -> None:
    op = Operator("reshape", ("x",), "y", ((5, 24),), (5, 3, 4, 2))
    assert Signature((Split(1, 3),), Split(2)) in signatures(op)
    back = Operator("reshape", ("x",), "y", ((5, 3, 4, 2),), (5, 24))
    assert Signature((Split(2),), Split(1, 3)) in signatures(back)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 99), st.integers(2, 3))
def test_gradients_lie_as_the_signature_says(seed, ranks) -> None:
    """Each rank's own gradients, put together as the duality says, are those of the dense computation."""
    torch.manual_seed(seed)
    for name, (op, compute, inputs) in operators(6, 6, 6, 6).items():
        if name == "embedding":
            continue
        learning = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
        dense = compute(*learning)
        ahead = torch.randn_like(dense) if dense.dim() else torch.ones_like(dense)
        wanted = torch.autograd.grad(dense, [t for t in learning if t.requires_grad], ahead)
        for signature in signatures(op):
            held = [pieces(t, p, ranks) for t, p in zip(inputs, signature.inputs, strict=True)]
            ahead_of = pieces(ahead, dual(signature.output), ranks)
            found: list[list[Tensor]] = [[] for _ in wanted]
            for rank in range(ranks):
                own = [t[rank].clone().requires_grad_() if t[rank].is_floating_point() else t[rank] for t in held]
                out = run(op, compute, own, rank, signature)
                floats = [t for t in own if t.requires_grad]
                grads = torch.autograd.grad(out, floats, ahead_of[rank], allow_unused=True)
                for place, gradient in enumerate(grads):
                    # What one rank adds has its gradient there; the others know it too, as it is that of the sum.
                    added = signature.added == place and rank
                    found[place].append(found[place][0] if added or gradient is None else gradient)
            for place, (grads, expected) in enumerate(zip(found, wanted, strict=True)):
                torch.testing.assert_close(
                    together(grads, signature.gradients[place]), expected, rtol=0, atol=1e-9,
                    msg=lambda m, n=name, s=signature: f"{n} {s}: {m}",
                )  # fmt: skip


def test_every_kind_is_tried() -> None:
    assert {op.kind for op, _, _ in operators(2, 2, 2, 2).values()} | {"reshape"} == KINDS
