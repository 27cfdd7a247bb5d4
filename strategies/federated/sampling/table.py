"""A sampler's memory as columns: one row a client that was seen, ascending by id, so that a look-up is a bisection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from strategies.base import Tree


def column(memory: Tree, name: str) -> NDArray[Any]:
    """Return a column as an array that must not be written to."""
    array: NDArray[Any] = memory[name].numpy()
    return array


def empty(**kinds: torch.dtype) -> Tree:
    """Return a table without rows: the column `client` and those named."""
    return {name: torch.zeros(0, dtype=kind) for name, kind in {"client": torch.int64, **kinds}.items()}


def place(memory: Tree, clients: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the row of each client, and whether it has one."""
    known = column(memory, "client")
    rows = np.searchsorted(known, clients)
    found = np.zeros(len(clients), bool)
    inside = rows < len(known)
    found[inside] = known[rows[inside]] == clients[inside]
    return rows, found


def write(memory: Tree, clients: NDArray[np.int64], **values: NDArray[Any]) -> dict[str, torch.Tensor]:
    """Return the memory with these clients' rows replaced or inserted; other columns are kept as they are.

    Args:
        clients: different ids. values: all columns of the table, in the order of `clients`.
    """
    order = np.argsort(clients)
    ids = clients[order]
    rows, found = place(memory, ids)
    changed: dict[str, torch.Tensor] = dict(memory)
    for name, value in {"client": ids, **{name: value[order] for name, value in values.items()}}.items():
        old = column(memory, name).copy()
        old[rows[found]] = value[found]
        changed[name] = torch.from_numpy(np.insert(old, rows[~found], value[~found]))
    return changed
