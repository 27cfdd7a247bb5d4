"""What `make test` relies on."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MARKED = re.compile(r"\bmark\.(ray|multinode)\b")


def test_tests_with_a_cluster_lie_where_make_looks_for_them() -> None:
    """Importing all tests, to run a hundred of them, takes a quarter of a minute."""
    (line,) = re.findall(r"^RAY_TESTS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    places = [ROOT / place for place in line.split()]
    assert all(place.exists() for place in places)
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if MARKED.search(path.read_text())]
    assert len(marked) > 10
    assert [path.name for path in marked if not any(path.is_relative_to(place) for place in places)] == []
