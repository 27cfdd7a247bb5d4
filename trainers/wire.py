"""Trees of tensors as bytes, in Arrow's IPC stream format: exact, self-describing, and free of code.

One record batch of one row holds one fixed-size binary column a tensor; a column's field carries dtype and
shape. Reading executes nothing that it reads: a damaged payload ends in `WireError`. Compression of updates is
not here but in codecs that produce such trees.

Everything in front of the tensors' bytes, the *head*, is a function of names, dtypes and shapes alone. Arrow makes
and checks a head once; trees of a kind that was seen before are copied behind the same head, and payloads behind a
known head are read without parsing it again.
"""

from __future__ import annotations

import ctypes
import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8  # of every part of an IPC stream
_CONTINUATION = 0xFFFFFFFF
_END = struct.pack("<II", _CONTINUATION, 0)
_KINDS_KEPT = 256

_Kind = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class WireError(Exception):
    """A payload is not a tree, or a tree holds what the wire cannot carry."""


class _Layout(NamedTuple):
    """Where the tensors of one kind of tree lie in a payload; gaps between them are zero."""

    head: bytes
    kind: _Kind
    spans: tuple[tuple[int, int], ...]
    strides: tuple[tuple[int, ...], ...]
    num_bytes: int


_by_kind: dict[_Kind, _Layout] = {}
_by_head: dict[bytes, _Layout] = {}


def encode(tree: Mapping[str, Tensor]) -> pa.Buffer:
    """Return the tree as Arrow IPC bytes. Tensors on a GPU are copied to the host.

    Raises:
        WireError: when a tensor's dtype cannot be carried.
    """
    kind = _kind(tree)
    layout = _by_kind.get(kind)
    if layout is None:
        sink = pa.BufferOutputStream()
        _write(sink, kind, [pa.py_buffer(_bytes(tensor)) for tensor in tree.values()])
        payload = sink.getvalue()
        layout = _layout(payload, kind)
        if layout is not None:
            _remember(_by_kind, kind, layout)
            _remember(_by_head, layout.head, layout)
        return payload
    payload = pa.allocate_buffer(layout.num_bytes)
    raw = memoryview(payload).cast("B")
    end = len(layout.head)
    raw[:end] = layout.head
    for tensor, (start, stop) in zip(tree.values(), layout.spans, strict=True):
        if start != end:
            raw[end:start] = bytes(start - end)
        on_host = tensor if tensor.is_cpu and tensor.is_contiguous() else tensor.detach().to("cpu").contiguous()
        ctypes.memmove(payload.address + start, on_host.data_ptr(), stop - start)
        end = stop
    raw[end:] = bytes(layout.num_bytes - end - len(_END)) + _END
    return payload


def size(tree: Mapping[str, Tensor]) -> int:
    """Return the bytes of `encode(tree)` without encoding it.

    Raises:
        WireError: when a tensor's dtype cannot be carried.
    """
    kind = _kind(tree)
    layout = _by_kind.get(kind)
    if layout is not None:
        return layout.num_bytes
    sink = pa.MockOutputStream()  # counts what is written and touches none of it
    _write(sink, kind, [pa.py_buffer(np.zeros(_size(dtype, shape), np.uint8)) for _, dtype, shape in kind])
    return int(sink.size())


def decode_trees(payloads: Mapping[str, Any], *, copy: bool = True) -> dict[str, dict[str, Tensor]]:
    """Return trees by name, each as of `decode`."""
    return {name: decode(payload, copy=copy) for name, payload in payloads.items()}


def decode(payload: pa.Buffer | bytes | memoryview, *, copy: bool = True) -> dict[str, Tensor]:
    """Return the tree that `encode` wrote.

    Args:
        copy: give every tensor its own memory. Else tensors are views of the payload, which they keep alive, and
            must not be written to: torch has no read-only tensors, and a write goes through to the payload, or
            ends the process where that is mapped read-only, as Ray's objects are. A payload whose address is not
            a multiple of 8 is copied all the same.

    Raises:
        WireError: when the payload is not such a tree.
    """
    buffer = payload if isinstance(payload, pa.Buffer) else pa.py_buffer(payload)
    layout = _by_head.get(_head(buffer))
    if layout is None or layout.num_bytes != buffer.size or memoryview(buffer)[-len(_END) :].tobytes() != _END:
        return _parse(buffer, copy)
    flat = _flat(buffer)
    copy = copy or buffer.address % _ALIGNMENT != 0
    typed: dict[torch.dtype, Tensor] = {}  # the whole payload as each dtype, so that a tensor is one call to torch
    tree = {}
    for (name, dtype, shape), (start, stop), strides in zip(layout.kind, layout.spans, layout.strides, strict=True):
        if start == stop:
            tree[name] = torch.empty(shape, dtype=dtype)
            continue
        if dtype not in typed:
            typed[dtype] = flat[: buffer.size // dtype.itemsize * dtype.itemsize].view(dtype)
        tensor = typed[dtype].as_strided(shape, strides, start // dtype.itemsize)
        tree[name] = tensor.clone() if copy else tensor
    return tree


# ---------------------------------------------------------------------------------------------- tensors and bytes


def _kind(tree: Mapping[str, Tensor]) -> _Kind:
    kind = tuple([(name, tensor.dtype, tensor.shape) for name, tensor in tree.items()])
    for name, dtype, _ in kind:
        if dtype not in DTYPE_NAMES:
            shown = str(dtype).removeprefix("torch.")
            raise WireError(f"tensor {name!r} has dtype {shown}; the wire carries {', '.join(DTYPES)}")
    return kind


def _size(dtype: torch.dtype, shape: Iterable[int]) -> int:
    return math.prod(shape) * dtype.itemsize


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()


def _flat(buffer: pa.Buffer) -> Tensor:
    """Return a buffer as a tensor of bytes over the same memory; numpy's way warns where that is read-only."""
    return torch.from_dlpack(pa.Array.from_buffers(pa.uint8(), buffer.size, [None, buffer]))


def _shaped(flat: Tensor, dtype: torch.dtype, shape: tuple[int, ...], copy: bool) -> Tensor:
    if not flat.numel():
        return torch.empty(shape, dtype=dtype)
    return (flat.clone() if copy else flat).view(dtype).view(shape)


# ------------------------------------------------------------------------------------------------- Arrow's part


def _write(sink: pa.NativeFile, kind: _Kind, buffers: list[pa.Buffer]) -> None:
    fields, columns = [], []
    for (name, dtype, shape), buffer in zip(kind, buffers, strict=True):
        binary = pa.binary(buffer.size)
        note = json.dumps({"dtype": DTYPE_NAMES[dtype], "shape": list(shape)})
        fields.append(pa.field(name, binary, nullable=False, metadata={"tensor": note}))
        columns.append(pa.Array.from_buffers(binary, 1, [None, buffer]))
    schema = pa.schema(fields)
    with pa.ipc.new_stream(sink, schema) as writer:
        if columns:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _head(buffer: pa.Buffer) -> bytes:
    """Return the first two messages, schema and batch, without the batch's body; nothing where they are not."""
    view, position = memoryview(buffer), 0
    for _ in range(2):
        if position + 8 > buffer.size:
            return b""
        mark, length = struct.unpack_from("<II", view, position)
        position += 8 + length
        if mark != _CONTINUATION or not length or position > buffer.size:
            return b""
    return bytes(view[:position])


def _layout(payload: pa.Buffer, kind: _Kind) -> _Layout | None:
    """Return the layout of a payload that Arrow wrote or checked; None when it is not the usual one."""
    head = _head(payload)
    position, spans = len(head), []
    for _, dtype, shape in kind:
        spans.append((position, position + _size(dtype, shape)))
        position = -(-spans[-1][1] // _ALIGNMENT) * _ALIGNMENT
    strides = tuple(tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))) for _, _, shape in kind)
    layout = _Layout(head, kind, tuple(spans), strides, position + len(_END))
    usual = kind and head and layout.num_bytes == payload.size and len({name for name, _, _ in kind}) == len(kind)
    return layout if usual else None


def _remember(layouts: dict[Any, _Layout], key: Any, layout: _Layout) -> None:
    if len(layouts) >= _KINDS_KEPT:
        layouts.pop(next(iter(layouts)), None)
    layouts[key] = layout


def _parse(buffer: pa.Buffer, copy: bool) -> dict[str, Tensor]:
    """Decode with Arrow's reader, checking everything; remember the layout when it is the usual one."""
    try:
        with pa.ipc.open_stream(buffer) as reader:
            schema, batches = reader.schema, list(reader)
        for batch in batches:
            batch.validate(full=True)
        names = schema.names
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise WireError(f"not a tree of tensors: {error}") from error
    if len(batches) != (1 if len(schema) else 0) or (batches and batches[0].num_rows != 1):
        raise WireError(f"a tree is one batch of one row, got {[batch.num_rows for batch in batches]} rows")
    kind = tuple(_noted(name, schema.field(index), batches[0].column(index)) for index, name in enumerate(names))
    tree = {}
    layout = _layout(buffer, kind)
    for index, (name, dtype, shape) in enumerate(kind):
        num_bytes = _size(dtype, shape)
        if not num_bytes:
            tree[name] = torch.empty(shape, dtype=dtype)
            continue
        column = batches[0].column(index)
        data = column.buffers()[1].slice(column.offset * num_bytes, num_bytes)
        if layout is not None and data.address - buffer.address != layout.spans[index][0]:
            layout = None
        tree[name] = _shaped(_flat(data), dtype, shape, copy or data.address % _ALIGNMENT != 0)
    if layout is not None:
        _remember(_by_head, layout.head, layout)
    return tree


def _noted(name: str, field: pa.Field, column: pa.Array) -> tuple[str, torch.dtype, tuple[int, ...]]:
    """Return name, dtype and shape of a column that holds what it says."""
    try:
        note = json.loads((field.metadata or {})[b"tensor"])
        dtype, shape = DTYPES[note["dtype"]], tuple(note["shape"])
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise WireError(f"tensor {name!r} lacks a dtype and shape the wire knows") from error
    if not pa.types.is_fixed_size_binary(field.type) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise WireError(f"tensor {name!r} is {field.type} of shape {shape}")
    needed = _size(dtype, shape)
    if field.type.byte_width != needed or column.null_count:
        raise WireError(f"tensor {name!r} of shape {shape} needs {needed} bytes, got {field.type.byte_width}")
    if math.prod(max(n, 1) for n in shape) >= 1 << 60:  # an empty tensor, but torch cannot number its elements
        raise WireError(f"tensor {name!r} has the impossible shape {shape}")
    return name, dtype, torch.Size(shape)
