"""What a rank knows of its pieces of saved tensors, as rank 0 of a group that moves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn import functional

from trainers.activations import Piece, Saver
from trainers.sharded.forecast import fake_group
from trainers.sharded.pieces import Pieces

MEMORY = {"activations": "int8", "min_elements": 1, "groups": 4, "range": "own"}


@pytest.fixture
def mesh() -> Iterator[Any]:
    with fake_group(4):
        yield init_device_mesh("cpu", (2, 2))


def laid(mesh: Any, *placements: Any) -> DTensor:
    torch.manual_seed(0)
    return DTensor.from_local(torch.randn(8, 12), mesh, placements, run_check=False)


@pytest.mark.parametrize(
    ("placements", "name"),
    [
        ((Replicate(), Replicate()), ""),
        ((Shard(0), Replicate()), ":0of2,*"),
        ((Replicate(), Partial()), ":*,0of2"),
        ((Shard(1), Shard(0)), ":0of2,0of2"),
    ],
)
def test_a_piece_is_called_by_the_axes_that_split_it(mesh: Any, placements: Any, name: str) -> None:
    tensor = laid(mesh, *placements)
    piece = Pieces(mesh).of(tensor)
    assert piece.name == name and piece.local.shape == (8, 12) and piece.laid is not None
    again = piece.laid(piece.local)
    assert isinstance(again, DTensor) and again.placements == tensor.placements and again.shape == tensor.shape


def test_a_tensor_split_in_parts_comes_back_as_it_lay(mesh: Any) -> None:
    """Read as an order of axes, `S(0/6)`, the products of attention were gathered before each multiplication."""
    lies = laid(mesh, Replicate(), Shard(0))
    spec = lies.reshape(2, 8, 12).transpose(0, 1).reshape(16, 12)._spec
    tensor = DTensor(torch.randn(8, 12), spec, requires_grad=False)
    assert isinstance(tensor.placements[1], _StridedShard)
    piece = Pieces(mesh).of(tensor)
    assert piece.laid is not None and piece.laid(piece.local)._spec == spec  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("place", "has", "tells"),
    [
        ("0/3", True, True), ("0/3:0of2,*", True, True), ("0/3:*,0of2", True, True), ("0/3:1of2,*", False, False),
        ("0/3:0of4,*", False, False), ("0/3:0of2", False, False), ("0/3:0of2,1of2", False, False),
    ],
)  # fmt: skip
def test_a_rank_takes_and_saves_the_ranges_of_its_pieces(mesh: Any, place: str, has: bool, tells: bool) -> None:
    assert (Pieces(mesh).has(place), Pieces(mesh).tells(place)) == (has, tells)
    alone = Pieces()
    assert alone.has(place) == alone.tells(place) == (":" not in place)


def test_of_ranks_with_the_same_piece_the_first_saves_its_ranges() -> None:
    class Second:
        ndim = 2

        def size(self, axis: int) -> int:
            return 2

        def get_coordinate(self) -> list[int]:
            return [0, 1]

    pieces = Pieces(Second())  # type: ignore[arg-type]
    told = {place: (pieces.has(place), pieces.tells(place)) for place in ("0/3", "0/3:0of2,*", "0/3:*,1of2")}
    assert told == {"0/3": (True, False), "0/3:0of2,*": (True, False), "0/3:*,1of2": (True, True)}


def test_what_was_changed_in_place_is_kept_as_it_is_then(mesh: Any) -> None:
    """Below autograd a piece does not count its changes; the tensor that it is of does."""
    kept: list[tuple[Tensor, Tensor]] = []
    saver = Saver(MEMORY, {0: ("", nn.Identity())}, parts=True, piece_of=Pieces(mesh).of)
    weight = laid(mesh, Replicate(), Replicate()).requires_grad_()
    x = laid(mesh, Shard(0), Replicate())
    packed: list[Any] = []
    saver.watch = lambda local, what: packed.append((local.clone(), what))
    with saver.microbatch(0, 7), saver.layer(0, (x,)):
        hidden = functional.linear(x, weight) * 1.0
        functional.gelu(hidden)
        hidden.mul_(-3.0)
        functional.gelu(hidden)
    kept = [(local, what.get()) for local, what in packed if not isinstance(what, Tensor) and local.shape == (8, 8)]
    assert len(kept) == 2 and not torch.equal(kept[0][0], kept[1][0])
    for local, decoded in kept:
        assert float((decoded - local).abs().max()) <= float(local.max() - local.min()) / 255


def test_a_rank_whose_piece_is_empty_counts_places_as_the_others_do() -> None:
    found = []
    for rows in (4, 0):
        torch.manual_seed(0)
        saver = Saver(MEMORY, {0: ("", nn.Identity())}, parts=True, piece_of=lambda t, rows=rows: Piece(t[:rows]))
        x = torch.randn(4, 6, requires_grad=True)
        with saver.microbatch(0, 7), saver.layer(0, ()):
            layer = saver._layer
            assert layer is not None
            functional.gelu(x * 2.0)
            found.append(layer._place)
    assert found[0] == found[1] > 0
