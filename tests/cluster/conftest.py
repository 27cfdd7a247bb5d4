"""For the tests in this folder: a toy worker, and what an executor has told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.executor import WorkerSpec


@pytest.fixture
def toy() -> Callable[..., WorkerSpec]:
    def spec(**kwargs: Any) -> WorkerSpec:
        return WorkerSpec("toy_worker:Toy", kwargs, (str(Path(__file__).parent),))

    return spec


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    """What an executor has told its `notify`."""
    return []
