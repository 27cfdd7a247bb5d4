"""Formulas against the volumes and idle times that GNNPipe's authors logged (arXiv:2308.10087, v1 and v2 runs)."""

from __future__ import annotations

import pytest

from strategies.graph import bubble, exchange_bytes, memory_bytes, pipeline_bytes, ring_bytes

GIB = 2**30
REDDIT, FLICKR, SQUIRREL = 232_965, 89_250, 5_201


def test_a_pipeline_of_eight_stages_sends_what_the_logs_say() -> None:
    gcn = pipeline_bytes([100] * 7, [100] * 7, REDDIT, 4)
    gcnii = pipeline_bytes([200] * 7, [200] * 7, REDDIT, 4)
    assert gcn / GIB == pytest.approx(1.2150, abs=5e-5)
    assert gcnii / GIB == pytest.approx(2.4300, abs=5e-5)
    assert pipeline_bytes([100] * 7, [100] * 7, FLICKR, 4) / GIB == pytest.approx(0.47, abs=5e-3)
    assert pipeline_bytes([], [], REDDIT, 4) == 0


@pytest.mark.parametrize(
    ("num_vertices", "alpha", "width", "num_features", "num_classes", "logged"),
    [(SQUIRREL, 2.22, 1000, 2089, 5, 4.43), (FLICKR, 2.15, 100, 500, 7, 4.60), (REDDIT, 2.61, 100, 602, 41, 14.50)],
)
def test_eight_graph_parallel_ways_exchange_what_the_logs_say(
    num_vertices: int, alpha: float, width: int, num_features: int, num_classes: int, logged: float
) -> None:
    rows = round(alpha * num_vertices)
    num_weights = width * (num_features + 30 * width + num_classes)
    total = exchange_bytes(rows, rows, [width] * 32, [width] * 32, 4) + ring_bytes(num_weights, 8, 4)
    assert total / GIB == pytest.approx(logged, rel=0.015)


def test_directions_may_exchange_different_rows_and_widths() -> None:
    assert exchange_bytes(10, 7, [3, 5], [5], 8) == (10 * 8 + 7 * 5) * 8


def test_one_way_has_nobody_to_send_to() -> None:
    assert ring_bytes(1000, 1, 4) == 0
    assert ring_bytes(1000, 2, 4) == 8000


def test_idle_time_is_that_of_the_paper() -> None:
    assert bubble(8, 32) == pytest.approx(0.179, abs=5e-4)
    assert bubble(4, 16) == pytest.approx(0.158, abs=5e-4)
    assert bubble(1, 5) == 0.0


def test_history_is_a_second_copy_of_what_is_aggregated() -> None:
    without = memory_bytes(100, 20, 10, [16, 8], 4, history=False)
    assert without == (120 + 110) * 24 * 4
    assert memory_bytes(100, 20, 10, [16, 8], 4, history=True) - without == 120 * 24 * 4
