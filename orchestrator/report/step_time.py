"""How long a step takes, as the pages of all gangs but graph pipelines, which count in epochs, tell it."""

from __future__ import annotations

import statistics

from orchestrator.report import scales
from orchestrator.report.page import Tile
from orchestrator.report.reading import Facts, finite


def step_time(facts: Facts) -> list[Tile]:
    """Return a tile with the median step, and the shortest and longest; none where no step was timed."""
    times = finite(facts, "time/step_s")
    if not times:
        return []
    spread = f"{scales.duration(min(times))} to {scales.duration(max(times))}"
    return [Tile("median step time", scales.duration(statistics.median(times)), spread)]
