"""What a run of K stages, W ways and S slots costs, before it is run: bytes of an epoch, idle time, memory.

Bytes are those of the whole cluster, both ways, and what is counted in a run must equal them; frames,
acknowledgements and reports are not among them.

Source: GNNPipe (arXiv:2308.10087): a pipeline sends `2 (K-1) N H` values an epoch, whatever the number of layers; graph
parallelism `2 L alpha N H` and the weights' gradients; the hybrid does both. Here layers may differ in width,
and what goes forward from what comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from strategies.graph.layout import Layout
from strategies.graph.share import needs
from strategies.graph.structure import Integers


def halo_rows(matrix: sp.csr_matrix, layout: Layout) -> Integers:
    """Return of each way the number of rows that it gets from the others in one aggregation; int64 `[ways]`."""
    return np.asarray(needs(matrix, layout).sum(axis=1), np.int64)


def replicas(matrix: sp.csr_matrix, layout: Layout) -> float:
    """Return alpha: on how many other ways a vertex is needed, in the mean; 0 for one way, at most `ways - 1`."""
    return int(halo_rows(matrix, layout).sum()) / layout.num_vertices


def pipeline_bytes(
    widths_forward: Sequence[int], widths_backward: Sequence[int], num_vertices: int, itemsize: int
) -> int:
    """Return the bytes that cross the boundaries between stages in an epoch; neither slots nor ways change them.

    Args:
        widths_forward: values a vertex that each of the K-1 boundaries carries forward; of several tensors, the sum.
        widths_backward: values of gradient a vertex that each carries back.
        itemsize: bytes of a value.
    """
    return num_vertices * (sum(widths_forward) + sum(widths_backward)) * itemsize


def exchange_bytes(
    halo_rows_forward: int,
    halo_rows_backward: int,
    widths_forward: Sequence[int],
    widths_backward: Sequence[int],
    itemsize: int,
) -> int:
    """Return the bytes of boundary rows that ways exchange in an epoch; neither slots nor stages change them.

    Args:
        halo_rows_forward: of all ways, `halo_rows(matrix, layout).sum()`.
        halo_rows_backward: the same of the transposed matrix.
        widths_forward: values a row of every aggregation in the model that exchanges rows.
        widths_backward: values a row of every one that exchanges gradients; one over features, say, does not.
        itemsize: bytes of a value.
    """
    return (halo_rows_forward * sum(widths_forward) + halo_rows_backward * sum(widths_backward)) * itemsize


def ring_bytes(num_values: int, ways: int, itemsize: int) -> int:
    """Return the bytes of summing gradients over the ways in a ring: each value takes `ways - 1` hops, twice.

    Source: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel
    Distrib. Comput. 69(2), 2009.
    """
    return 2 * (ways - 1) * num_values * itemsize


def bubble(stages: int, slots: int) -> float:
    """Return the part of the time in which a stage is idle where all slots cost the same: `(K-1) / (S+K-1)`.

    Source: GPipe (arXiv:1811.06965) section 2.3, with slots in the place of micro-batches.
    """
    return (stages - 1) / (slots + stages - 1)


def memory_bytes(
    num_own: int, num_halo_forward: int, num_halo_backward: int, widths: Sequence[int], itemsize: int, history: bool
) -> int:
    """Return the bytes of the tables that one rank keeps for a whole epoch: an estimate of what grows with the graph.

    Of every aggregation these are its input and the gradient of its output, over own and halo rows, and with
    `history` a copy of the input of the last refresh. Left out: the matrices, boundaries between stages, and what one
    chunk makes and throws away.

    Args:
        widths: values a row of every aggregation of the rank's layers.
        history: whether several slots see one another's older rows.
    """
    inputs = (num_own + num_halo_forward) * (2 if history else 1)
    return (inputs + num_own + num_halo_backward) * sum(widths) * itemsize
