"""A sparse matrix times dense rows by every kernel of `trainers.graph.kernels`: what the rule behind `auto` rests on.

A graph of 100,000 vertices and 2,000,000 edges, whole and as a chunk of an eighth of its rows. In *near* order an
edge's ends are at most 2,000 places apart, as METIS leaves most of them; in *random* order anywhere. One thread, and
its own processor time, so that other processes disturb less. Kernels alternate; printed are the median milliseconds
of a product and, in brackets, how many times as fast as `csr` it is, least to most over the repetitions.

`scatter` builds a row for every edge: it is measured on the chunk, where that fits into memory. Results of more than
32 MiB are pages that the system hands out anew for each product; with THP_MEM_ALLOC_ENABLE=1 they are large ones.

    python -m benchmarks.graph_kernels [--repeats 5] [--vertices 100000] [--edges 2000000]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch

from trainers.graph.kernels import KERNELS, RULE, Matrix

WIDTHS, DTYPES, CHUNKS, REACH = (64, 100, 256), (torch.float32, torch.float64), 8, 2000


def made(num_vertices: int, num_edges: int, order: str) -> sp.csr_matrix:
    """Return a matrix with up to `num_edges` entries."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, num_vertices, num_edges)
    near = (rows + rng.integers(-REACH, REACH + 1, num_edges)) % num_vertices
    columns = near if order == "near" else rng.integers(0, num_vertices, num_edges)
    matrix = sp.csr_matrix((rng.random(num_edges), (rows, columns)), (num_vertices, num_vertices))
    matrix.sum_duplicates()
    return matrix


def timed(matrix: Matrix, dense: torch.Tensor) -> float:
    """Return the milliseconds of one product."""
    began = time.thread_time()
    matrix.multiply(dense)
    return 1000 * (time.thread_time() - began)


def compared(matrix: sp.csr_matrix, width: int, dtype: torch.dtype, names: list[str], repeats: int) -> Iterator[str]:
    """Yield a cell for each kernel."""
    dense = torch.randn(matrix.shape[1], width, dtype=dtype, generator=torch.Generator().manual_seed(0))
    kernels = {name: Matrix(matrix, dtype=dtype, kernel=name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        for name, kernel in kernels.items():
            taken = timed(kernel, dense)
            if repeat:  # the first one is a warm-up
                times[name].append(taken)
    for name in KERNELS:
        if name not in times:
            yield "-"
            continue
        ratios = [slow / own for slow, own in zip(times["csr"], times[name], strict=True)]
        yield f"{statistics.median(times[name]):.1f} ({min(ratios):.2g}-{max(ratios):.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vertices", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=2_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}; auto is {', '.join(f'{d} {str(t)[6:]} {k}' for (d, t), k in RULE.items())}\n")
    print(f"| order | rows | type | width | {' | '.join(KERNELS)} |\n|{'---|' * (4 + len(KERNELS))}")
    for order in ("near", "random"):
        whole = made(arguments.vertices, arguments.edges, order)
        for rows in (arguments.vertices, arguments.vertices // CHUNKS):
            names = [name for name in KERNELS if name != "scatter" or rows < arguments.vertices]
            for dtype in DTYPES:
                for width in WIDTHS:
                    cells = compared(whole[:rows], width, dtype, names, arguments.repeats)
                    print(f"| {order} | {rows} | {str(dtype)[6:]} | {width} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
