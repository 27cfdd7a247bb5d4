"""A sparse matrix times dense rows, the one expensive thing that a graph layer does, by four interchangeable kernels.

    bag      torch's embedding_bag: each row of the matrix is a bag of weighted rows (fbgemm's compiled loop, float32)
    csr      torch's CSR tensors: MKL on a CPU, cuSPARSE on a GPU
    scipy    scipy's csr_matrix, without a copy; on a CPU
    scatter  one message an edge, then index_add: what graph libraries do with an edge index

`auto` is a fixed rule, `RULE`, by device and dtype: never a measurement at run time, for bits must not depend on how
busy a machine was. On one thread of a CPU, in float32 `bag` is 1.6 to 4 times as fast as `csr` and 23 to 60 times as
`scatter`; in float64 `csr` is the fastest on chunks, and on whole graphs now it is, now `scipy`
(`benchmarks/graph_kernels.py`; the table is in `docs/benchmarks.md`).

On a CPU a row of the product is a sum over that row's entries in the order that the matrix stores them, whatever
other rows the matrix has, whatever its columns are called and whatever the number of threads: a vertex gets the same
bits in a chunk as in the whole graph. On a GPU, where nothing was measured, only `bag` gives each row to one thread
that sums in order; `csr` promises less, and `scatter` adds in any order.

Left out: gradients (`view.py`), matrices whose values are learned, kernels of our own in C++.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

RULE = {
    ("cpu", torch.float32): "bag",
    ("cpu", torch.float64): "csr",
    ("cuda", torch.float32): "bag",
    ("cuda", torch.float64): "bag",
}
"""What `auto` is, by device and dtype."""


class Matrix:
    """A fixed sparse matrix, as one kernel wants it.

    Args:
        matrix: its values are cast to `dtype`; entries of a row are summed in the order in which it stores them.
        kernel: `auto`, or a name of `KERNELS`.

    Raises:
        ValueError: for an unknown kernel, a kernel that the device has not, a dtype that is no float32 or float64, or
            a matrix with columns out of range.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        kernel: str = "auto",
    ) -> None:
        device = torch.device(device)
        self.kernel = choose(kernel, device, dtype)
        self.shape: tuple[int, int] = tuple(matrix.shape)
        self.dtype, self.device = dtype, device
        self.num_entries = int(matrix.nnz)
        matrix.check_format(full_check=True)
        largest = max(self.num_entries, *self.shape)
        index = np.int32 if largest <= np.iinfo(np.int32).max else np.int64
        values = torch.from_numpy(matrix.data.astype(_NUMPY[dtype]))
        rows, columns = (torch.from_numpy(part.astype(index)) for part in (matrix.indptr, matrix.indices))
        rows, columns, values = rows.to(device), columns.to(device), values.to(device)
        self.num_bytes = rows.nbytes + columns.nbytes + values.nbytes
        self.columns = columns
        self._rows, self._values = rows, values
        self._multiply = KERNELS[self.kernel](rows, columns, values, self.shape)

    def reading(self, columns: Tensor, num_columns: int) -> Matrix:
        """Return this matrix with its entries, in their order, in other columns.

        Shapes: `columns [num_entries]`, of the type of `self.columns`.
        """
        return self._with(columns, self._values, (self.shape[0], num_columns))

    def weighted(self, factors: Tensor) -> Matrix:
        """Return this matrix with each of its entries, in their order, times a number.

        Shapes: `factors [num_entries]`.
        """
        return self._with(self.columns, self._values * factors, self.shape)

    def _with(self, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Matrix:
        other = copy.copy(self)
        other.columns, other._values, other.shape = columns, values, shape
        other._multiply = KERNELS[self.kernel](self._rows, columns, values, shape)
        return other

    def multiply(self, dense: Tensor) -> Tensor:
        """Return the product with rows `[n_columns, H]` as `[n_rows, H]`; autograd does not see it.

        Raises:
            ValueError: when rows are missing or too many, or are of another dtype or device than the matrix.
        """
        if dense.dim() != 2 or len(dense) != self.shape[1] or dense.dtype != self.dtype:
            raise ValueError(
                f"a matrix of shape {self.shape} and {self.dtype} multiplies {self.shape[1]} rows of {self.dtype}, "
                f"but got shape {tuple(dense.shape)} and {dense.dtype}"
            )
        if dense.device.type != self.device.type:
            raise ValueError(f"the matrix is on {self.device}, but the rows are on {dense.device}")
        with torch.no_grad():
            return self._multiply(dense.detach().contiguous())


def choose(kernel: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return the kernel that a name stands for.

    Raises:
        ValueError: as `Matrix` does.
    """
    if (device.type, dtype) not in RULE:
        known = ", ".join(f"{kind} {str(number).removeprefix('torch.')}" for kind, number in RULE)
        raise ValueError(f"sparse products are computed in {known}, but {dtype} on {device.type} was asked for")
    if kernel == "auto":
        return RULE[device.type, dtype]
    if kernel not in KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; kernels are auto, {', '.join(KERNELS)}")
    if kernel == "scipy" and device.type != "cpu":
        raise ValueError(f"kernel scipy works on a CPU, but the matrix is on {device}; use auto or csr")
    return kernel


def _bag(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Product:
    def multiply(dense: Tensor) -> Tensor:
        if not len(columns) or not dense.numel():
            return dense.new_zeros(shape[0], dense.shape[1])
        return torch.nn.functional.embedding_bag(
            columns, dense, rows, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    return multiply


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Product:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)
    return lambda dense: torch.mm(matrix, dense)


def _scipy(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Product:
    matrix = sp.csr_matrix((values.numpy(), columns.numpy(), rows.numpy()), shape, copy=False)
    return lambda dense: torch.from_numpy(matrix @ dense.numpy())


def _scatter(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Product:
    columns = columns.long()
    targets = torch.repeat_interleave(torch.arange(shape[0], device=rows.device), rows.diff().long())

    def multiply(dense: Tensor) -> Tensor:
        result = dense.new_zeros(shape[0], dense.shape[1])
        return result.index_add_(0, targets, dense[columns] * values[:, None])

    return multiply


Product = Callable[[Tensor], Tensor]
KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Product]] = {
    "bag": _bag,
    "csr": _csr,
    "scipy": _scipy,
    "scatter": _scatter,
}
_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
