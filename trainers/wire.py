"""Trees of tensors as bytes, in Arrow's IPC stream format: exact, self-describing, and free of code.

One record batch of one row holds one fixed-size binary column a tensor; a column's field carries dtype and
shape. Reading executes nothing that it reads: a damaged payload ends in `WireError`. Compression of updates is
not here but in codecs that produce such trees.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class WireError(Exception):
    """A payload is not a tree, or a tree holds what the wire cannot carry."""


def encode(tree: Mapping[str, Tensor]) -> pa.Buffer:
    """Return the tree as Arrow IPC bytes. Tensors on a GPU are copied to the host.

    Raises:
        WireError: when a tensor's dtype cannot be carried.
    """
    fields, columns = [], []
    for name, tensor in tree.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES:
            raise WireError(f"tensor {name!r} has dtype {dtype}; the wire carries {', '.join(_DTYPES)}")
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        kind = pa.binary(flat.numel())
        note = json.dumps({"dtype": dtype, "shape": list(tensor.shape)})
        fields.append(pa.field(name, kind, nullable=False, metadata={"tensor": note}))
        columns.append(pa.Array.from_buffers(kind, 1, [None, pa.py_buffer(flat.numpy())]))
    schema = pa.schema(fields)
    batch = pa.RecordBatch.from_arrays(columns, schema=schema) if columns else None
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if batch is not None:
            writer.write_batch(batch)
    return sink.getvalue()


def decode(payload: pa.Buffer | bytes | memoryview) -> dict[str, Tensor]:
    """Return the tree that `encode` wrote, in its own memory.

    Raises:
        WireError: when the payload is not such a tree.
    """
    try:
        with pa.ipc.open_stream(payload) as reader:
            schema, batches = reader.schema, list(reader)
        for batch in batches:
            batch.validate(full=True)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise WireError(f"not a tree of tensors: {error}") from error
    if len(batches) != (1 if len(schema) else 0) or (batches and batches[0].num_rows != 1):
        raise WireError(f"a tree is one batch of one row, got {[batch.num_rows for batch in batches]} rows")
    return {field.name: _tensor(field, batches[0].column(index)) for index, field in enumerate(schema)}


def _tensor(field: pa.Field, column: pa.Array) -> Tensor:
    try:
        note = json.loads((field.metadata or {})[b"tensor"])
        dtype, shape = _DTYPES[note["dtype"]], tuple(note["shape"])
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"tensor {field.name!r} lacks a dtype and shape the wire knows") from error
    if not pa.types.is_fixed_size_binary(field.type) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise WireError(f"tensor {field.name!r} is {field.type} of shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if field.type.byte_width != size or column.null_count:
        raise WireError(f"tensor {field.name!r} of shape {shape} needs {size} bytes, got {field.type.byte_width}")
    tensor = torch.empty(shape, dtype=dtype)
    if size:
        source = np.frombuffer(column.buffers()[1], dtype=np.uint8, count=size, offset=column.offset * size)
        tensor.reshape(-1).view(torch.uint8).numpy()[:] = source
    return tensor
