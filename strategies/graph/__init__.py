"""Training on one whole graph across workers, as data: who has which vertices, what they exchange, what it costs."""

from __future__ import annotations

from strategies.graph.costs import bubble, exchange_bytes, halo_rows, memory_bytes, pipeline_bytes, replicas, ring_bytes
from strategies.graph.layout import METHODS, Layout, layout
from strategies.graph.order import chunk_order
from strategies.graph.propagation import KINDS, propagation
from strategies.graph.share import Share, needs, share
from strategies.graph.structure import (
    Dropped,
    Graph,
    adjacency,
    dropped,
    from_edges,
    is_symmetric,
    permuted,
    transpose,
    with_self_loops,
)

__all__ = [
    "KINDS",
    "METHODS",
    "Dropped",
    "Graph",
    "Layout",
    "Share",
    "adjacency",
    "bubble",
    "chunk_order",
    "dropped",
    "exchange_bytes",
    "from_edges",
    "halo_rows",
    "is_symmetric",
    "layout",
    "memory_bytes",
    "needs",
    "permuted",
    "pipeline_bytes",
    "propagation",
    "replicas",
    "ring_bytes",
    "share",
    "transpose",
    "with_self_loops",
]
