"""For the tests in this folder: a cluster of this process's own a module, and a toy worker."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import connect
from cluster.executor import WorkerSpec


@pytest.fixture(scope="module")
def local_ray() -> Iterator[str]:
    """A cluster of this process's own with four CPUs; returns the address that makes a run use it."""
    folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")
    with folder as name, connect("local", min_cpus=4, temp_dir=name):
        yield "local"


@pytest.fixture
def toy() -> Callable[..., WorkerSpec]:
    def spec(**kwargs: Any) -> WorkerSpec:
        return WorkerSpec("toy_worker:Toy", kwargs, (str(Path(__file__).parent),))

    return spec


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    """What an executor has told its `notify`."""
    return []
