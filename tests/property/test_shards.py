"""Pieces of tensors: however they are cut over files, and whatever is asked for, the elements come back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import shards
from trainers.shards import Piece, Shards

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16)


@st.composite
def tensors(draw: st.DrawFn) -> dict[tuple[str, str], torch.Tensor]:
    """Draw a few tensors of two trees; empty ones and ones without dimensions among them."""
    found = {}
    for index in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        numel = torch.Size(shape).numel()
        dtype = draw(st.sampled_from(DTYPES))
        values = torch.randint(0, 2 if dtype == torch.bool else 100, (numel,)).to(dtype)
        found[draw(st.sampled_from(("model", "optimizer.exp_avg"))), f"layer.{index}/ä"] = values.view(shape)
    return found


@settings(max_examples=25, deadline=None)
@given(tensors(), st.data())
def test_any_number_of_ranks_reads_what_any_number_wrote(
    held: dict[tuple[str, str], torch.Tensor], data: st.DataObject
):
    writers = data.draw(st.integers(1, 4))
    pieces: list[list[Piece]] = [[] for _ in range(writers)]
    for (tree, name), tensor in held.items():
        numel = tensor.numel()
        cuts = sorted(data.draw(st.lists(st.integers(0, numel), max_size=4)))
        for low, high in zip([0, *cuts], [*cuts, numel], strict=True):
            writer = data.draw(st.integers(0, writers - 1))
            pieces[writer].append(Piece(tree, name, tuple(tensor.shape), low, tensor.reshape(-1)[low:high]))
    with tempfile.TemporaryDirectory() as folder:
        files = [shards.write(folder, f"{number}.arrow", part) for number, part in enumerate(pieces)]
        assert [Path(folder, file.name).stat().st_size for file in files] == [file.num_bytes for file in files]
        read = Shards.open(folder, files)
        assert {(tree, name) for tree in read.trees for name in read.names(tree)} == held.keys()
        for (tree, name), tensor in held.items():
            low = data.draw(st.integers(0, tensor.numel()))
            high = data.draw(st.integers(low, tensor.numel()))
            found = read.read(tree, name, low, high - low)
            assert found.dtype == tensor.dtype and torch.equal(found, tensor.reshape(-1)[low:high])
            whole = read.whole(tree)[name]
            assert read.shape(tree, name) == tuple(tensor.shape) and torch.equal(whole, tensor)
