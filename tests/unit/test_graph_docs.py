"""The page on graph pipelines says what there is: sections are valid, models train, links lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import orchestrator
from orchestrator.config import load_experiment
from orchestrator.config.schema import GraphPipeline
from strategies.graph import from_edges
from trainers.graph.view import FullView

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "graphs.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)
BASE: dict[str, Any] = {
    "name": "x",
    "data": {"name": "sbm", "vertices": 60, "degree": 4, "features": 4},
    "model": {"name": "gcn"},
    "strategy": {"kind": "graph-pipeline"},
}


def test_its_sections_are_valid() -> None:
    found = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S)]
    for section in found:
        load_experiment({**BASE, **section})
    assert len(found) == 2


FIELDS = (
    "stages", "ways", "chunks", "refresh", "correction", "chunking", "shuffle", "patience", "recompute", "kernel",
    "graph_folder", "restarts", "epochs",
)  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_it_names_fields_that_there_are(field: str) -> None:
    assert field in GraphPipeline.model_fields
    assert re.search(rf"`(strategy\.)?{field}[:`]|strategy\.{field}=", PAGE)


def test_the_defaults_it_tells_are_those() -> None:
    told = GraphPipeline(kind="graph-pipeline")
    assert (told.refresh, told.correction) == (23, 2.0) and "23 when left out" in PAGE and "2 when left out" in PAGE
    assert told.slots == 4 * told.stages and GraphPipeline(kind="graph-pipeline", stages=1, ways=2).slots == 1


def test_its_model_of_convolutions_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"docs_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(CODE[0])
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    model = {"target": f"{name}:build", "kwargs": {"depth": 2, "width": 8}}
    strategy = {"kind": "graph-pipeline", "chunks": 2, "epochs": 1}
    quiet = {"cluster": {"workers": 0}, "tracking": {"enabled": False}, "storage": {"root": str(tmp_path)}}
    result = orchestrator.run({**BASE, **quiet, "model": model, "strategy": strategy}, quiet=True)
    assert result.status == "FINISHED"


def test_its_layer_is_one() -> None:
    made: dict[str, Any] = {}
    exec(CODE[1], made)
    graph = from_edges([0, 1], [1, 0], 2)
    rows = made["Diffuse"]()(torch.tensor([[2.0], [4.0]]), FullView(graph))
    assert rows.tolist() == [[3.0], [3.0]]


def test_links_of_the_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)[)#]", PAGE):
        assert (ROOT / "docs" / target).resolve().exists(), target
    examples = re.findall(r"examples/\w+\.yaml", PAGE)
    assert examples and all((ROOT / example).is_file() for example in examples)
