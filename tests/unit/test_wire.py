"""The wire carries every tree exactly, and refuses everything else."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers import wire

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4), (7, 1, 3, 2)])
def test_every_dtype_and_shape_comes_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape, dtype=torch.float64) * 50).to(dtype)
    tree = {"layer.weight": tensor, "other": torch.ones(2)}
    for back in (wire.decode(wire.encode(tree)), wire.decode(wire.encode(tree), copy=False)):
        assert list(back) == ["layer.weight", "other"]
        assert back["layer.weight"].dtype == dtype and back["layer.weight"].shape == tensor.shape
        assert torch.equal(back["layer.weight"], tensor)


def test_not_a_number_infinity_and_negative_zero_survive() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 5e-324], dtype=torch.float64)
    back = wire.decode(wire.encode({"w": tensor}))["w"]
    assert torch.equal(back.view(torch.int64), tensor.view(torch.int64))


def test_a_transposed_tensor_comes_back_with_its_values() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    assert wire.encode({"w": tensor}).equals(wire.encode({"w": tensor.contiguous()}))
    assert torch.equal(wire.decode(wire.encode({"w": tensor}))["w"], tensor)


def test_an_empty_tree_is_a_tree() -> None:
    assert wire.decode(wire.encode({})) == {}


def test_a_decoded_tensor_has_its_own_memory() -> None:
    payload = wire.encode({"w": torch.zeros(4)})
    wire.decode(payload)["w"].add_(1)
    assert wire.decode(payload)["w"].tolist() == [0.0] * 4


def forget() -> None:
    """Let the wire meet every kind of tree for the first time again."""
    wire._by_kind.clear()
    wire._by_head.clear()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_do_not_depend_on_whether_a_kind_was_seen_before(dtype: torch.dtype) -> None:
    tree = {
        "a": torch.ones(3, dtype=dtype),
        "b": torch.zeros((), dtype=dtype),
        "c": torch.ones(2, 0, 3),
        "d": torch.ones(7),
    }
    forget()
    assert wire.size(tree) == wire.encode(tree).size == wire.size(tree)
    forget()
    first, second = wire.encode(tree), wire.encode(tree)
    assert first.equals(second)
    assert pa.ipc.open_stream(second).read_all().num_rows == 1
    forget()
    for _ in range(2):  # parsed by Arrow, then by layout
        back = wire.decode(second)
        assert list(back) == list(tree)
        assert all(torch.equal(back[name], tree[name]) and back[name].dtype == tree[name].dtype for name in tree)


@pytest.mark.parametrize("known", [False, True])
def test_tensors_that_are_not_copied_lie_in_the_payload_and_keep_it(
    known: bool, recwarn: pytest.WarningsRecorder
) -> None:
    payload = wire.encode({"w": torch.arange(4.0), "b": torch.ones(3, dtype=torch.bfloat16)})
    address, end = payload.address, payload.address + payload.size
    if not known:
        forget()
    for held in (payload, pa.py_buffer(payload.to_pybytes())):
        back = wire.decode(held, copy=False)
        assert all(held.address <= tensor.data_ptr() < held.address + held.size for tensor in back.values())
    back = wire.decode(payload, copy=False)
    del payload, held
    assert address <= back["w"].data_ptr() < end and back["w"].data_ptr() % 8 == 0
    assert back["w"].tolist() == [0.0, 1.0, 2.0, 3.0] and back["b"].tolist() == [1.0] * 3
    assert not recwarn.list


@pytest.mark.parametrize("known", [False, True])
def test_a_payload_at_an_odd_address_is_copied(known: bool) -> None:
    payload = wire.encode({"w": torch.arange(4.0)})
    if not known:
        forget()
    shifted = pa.py_buffer(b"123" + payload.to_pybytes()).slice(3)
    back = wire.decode(shifted, copy=False)["w"]
    assert back.data_ptr() % 8 == 0 and back.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_what_was_read_does_not_change_what_is_written() -> None:
    tree = {"w": torch.arange(4.0)}
    whole = wire.encode(tree).to_pybytes()
    forget()
    foreign = whole.replace(b'"shape": [4]', b'"shape":[4] ')
    assert foreign != whole and torch.equal(wire.decode(foreign)["w"], tree["w"])
    assert wire.encode(tree).to_pybytes() == whole


def test_only_some_kinds_are_kept() -> None:
    for length in range(2 * wire._KINDS_KEPT):
        wire.encode({"w": torch.zeros(length + 1)})
    assert len(wire._by_kind) <= wire._KINDS_KEPT and len(wire._by_head) <= wire._KINDS_KEPT


def test_a_dtype_that_cannot_travel_is_named() -> None:
    with pytest.raises(wire.WireError, match=r"'w' has dtype complex64"):
        wire.encode({"w": torch.zeros(2, dtype=torch.complex64)})


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_payload_ends_in_a_wire_error_or_a_tree(data: st.DataObject) -> None:
    whole = bytes(wire.encode({"a": torch.arange(5.0), "b": torch.ones(2, 3, dtype=torch.int64)}))
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    try:
        tree = wire.decode(bytes(mutated[:cut]), copy=data.draw(st.booleans()))
    except wire.WireError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tree.values())


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        (b"weight", b"w\xff\xfeght"),
        (b'"shape": [0, 7]', b'"shape":       7'),
        (b'"shape": [0, 7777777, 777777777]', b'"shape":[0,9999999999,999999999]'),
        (b'"shape": [0, 7]', b"[[[[[[[[[[[[[[["),
    ],
)
def test_a_note_that_makes_no_sense_is_refused(part: bytes, instead: bytes) -> None:
    shape = (0, 7777777, 777777777) if len(part) > 20 else (0, 7)
    whole = wire.encode({"weight": torch.empty(shape), "o": torch.ones(2)})
    damaged = whole.to_pybytes().replace(part, instead.ljust(len(part)))
    assert damaged != whole.to_pybytes()
    with pytest.raises(wire.WireError):
        wire.decode(damaged)


def test_an_arrow_table_that_is_no_tree_is_refused() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": [1, 2, 3]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(wire.WireError):
        wire.decode(sink.getvalue())
