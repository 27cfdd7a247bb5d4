"""What parity tests stand on: one thread, so that sums have one order, and small graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.parity.graph_emulation import GRAPHS
from trainers.data.graphs.base import GraphData


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(graph: str) -> GraphData:
    """The graph that a test names by its parameter `graph`."""
    return GRAPHS[graph]()
