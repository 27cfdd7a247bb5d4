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
    back = wire.decode(wire.encode({"layer.weight": tensor, "other": torch.ones(2)}))
    assert list(back) == ["layer.weight", "other"]
    assert back["layer.weight"].dtype == dtype and back["layer.weight"].shape == tensor.shape
    assert torch.equal(back["layer.weight"], tensor)


def test_not_a_number_infinity_and_negative_zero_survive() -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 5e-324], dtype=torch.float64)
    back = wire.decode(wire.encode({"w": tensor}))["w"]
    assert torch.equal(back.view(torch.int64), tensor.view(torch.int64))


def test_a_transposed_tensor_comes_back_with_its_values() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    assert torch.equal(wire.decode(wire.encode({"w": tensor}))["w"], tensor)


def test_an_empty_tree_is_a_tree() -> None:
    assert wire.decode(wire.encode({})) == {}


def test_a_decoded_tensor_has_its_own_memory() -> None:
    payload = wire.encode({"w": torch.zeros(4)})
    wire.decode(payload)["w"].add_(1)
    assert wire.decode(payload)["w"].tolist() == [0.0] * 4


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
    cut = data.draw(st.integers(0, len(whole)))
    try:
        tree = wire.decode(bytes(mutated[:cut]))
    except wire.WireError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tree.values())


def test_an_arrow_table_that_is_no_tree_is_refused() -> None:
    sink = pa.BufferOutputStream()
    table = pa.table({"x": [1, 2, 3]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(wire.WireError):
        wire.decode(sink.getvalue())
