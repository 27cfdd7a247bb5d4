"""From the `data` section of an experiment to a checked graph, for the strategies that train on a whole graph.

The same section means rows to other strategies where `trainers.data.registry` knows its name too. `GRAPH_ONLY` names
have no meaning as rows. Adding a graph is a module with a `load` and a line in `_BUILDERS`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from trainers.data.base import DataError
from trainers.data.download import data_folder
from trainers.data.graphs import citation, generated, own
from trainers.data.graphs.base import GraphData
from trainers.data.graphs.validate import validate

Section = Mapping[str, Any]

GRAPH_ONLY = ("graph-parquet", "graph-ogb", "sbm", "power-law")
"""Names that mean nothing without edges: as rows they are refused."""
GRAPH_NAMES = (*citation.NAMES, *GRAPH_ONLY)
"""All that a strategy which trains on a graph can load by name; it takes `target:` besides."""


def _citation(section: Section, seed: int) -> GraphData:
    return citation.load(section["name"], data_folder(section.get("folder")), section.get("normalize", "rows"))


def _sbm(section: Section, seed: int) -> GraphData:
    return generated.sbm(seed=seed, **_settings(section))


def _power_law(section: Section, seed: int) -> GraphData:
    return generated.power_law(seed=seed, **_settings(section))


def _parquet(section: Section, seed: int) -> GraphData:
    from trainers.data.graphs import parquet  # as `trainers.data.registry` does: its reader is slow to import

    return parquet.load(seed=seed, **_settings(section))


def _ogb(section: Section, seed: int) -> GraphData:
    from trainers.data.graphs import ogb

    return ogb.load(**_settings(section))


def _settings(section: Section) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


_BUILDERS: dict[str, Callable[[Section, int], GraphData]] = {
    "cora": _citation,
    "citeseer": _citation,
    "pubmed": _citation,
    "graph-parquet": _parquet,
    "graph-ogb": _ogb,
    "sbm": _sbm,
    "power-law": _power_law,
}


def load(section: Section, *, seed: int) -> GraphData:
    """Return the graph that the `data` section of an experiment names, checked.

    Args:
        section: the section as a plain mapping; fields left out take the section's defaults.
        seed: the experiment's seed; only generated graphs and splits without a column draw from it.

    Raises:
        DataError: when the graph cannot be had or used.
    """
    if section.get("target"):
        return validate(own.load(section["target"], section.get("kwargs") or {}))
    name = str(section.get("name"))
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, GRAPH_NAMES, n=1)
        hint = (
            f"did you mean {near[0]}?" if near else f"graphs are {', '.join(GRAPH_NAMES)}, or target: module:function"
        )
        raise DataError(f"{name!r} is no graph", hint)
    return validate(_BUILDERS[name](section, seed))
