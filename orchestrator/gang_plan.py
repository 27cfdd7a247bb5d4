"""What the plans of all gangs have: the page around their own sections, and whether their ranks fit into memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.config import Loaded
from orchestrator.config.schema import Experiment
from orchestrator.errors import PlacementError
from orchestrator.plan_page import placement_lines, section, verdict
from orchestrator.planning import PROCESS_BYTES, placement_of
from orchestrator.preparing import Prepared
from orchestrator.progress import size

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.inventory import Node
    from cluster.placement import Placement


@dataclass(frozen=True, kw_only=True)
class GangPlan(ABC):
    """What a gang would do. `problems` says what keeps it from starting; empty when it can.

    Args:
        text: the resolved experiment. changed: what overrides changed. data_bytes: of data set or graph, once a node.
        nodes, placement: as in `planning.Plan`. hint: what to ask for when it does not fit.
    """

    experiment: Experiment
    text: str
    changed: list[str]
    num_parameters: int
    data_bytes: int
    hint: str
    nodes: list[Node] = field(default_factory=list)
    placement: Placement | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return PlacementError.exit_code if self.problems else 0

    def render(self, console: Console) -> None:
        """Print the plan."""
        for line in self._page():
            console.print(line, markup=False)

    @abstractmethod
    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the sections of this kind of gang, each a title and its lines."""

    def _page(self) -> Iterator[str]:
        yield from section("experiment", self.text.rstrip().splitlines())
        if self.changed:
            yield from section("changed", self.changed)
        yield from section("placement", placement_lines(self))
        for title, lines in self.sections():
            yield from section(title, lines)
        yield from verdict(self.problems, self.hint)


def common(
    loaded: Loaded, prepared: Prepared, rank_bytes: Sequence[int], data_bytes: int, what: str = "ranks"
) -> dict[str, Any]:
    """Return the fields that plans of all gangs have, but for the hint.

    Args:
        rank_bytes, data_bytes, what: as of `problems`.

    Raises:
        PlacementError: when the cluster does not answer.
    """
    nodes, placement = placement_of(loaded.experiment)
    return {
        "experiment": loaded.experiment,
        "text": loaded.text,
        "changed": loaded.changed,
        "num_parameters": sum(parameter.numel() for parameter in prepared.model.parameters()),
        "data_bytes": data_bytes,
        "nodes": nodes,
        "placement": placement,
        "problems": list(problems(rank_bytes, data_bytes, nodes, placement, what)),
    }


def problems(
    rank_bytes: Sequence[int], data_bytes: int, nodes: Sequence[Node], placed: Placement | None, what: str = "ranks"
) -> Iterator[str]:
    """Yield what keeps a gang from starting: room, or the memory of a node.

    Args:
        rank_bytes: of each rank, beside its process. data_bytes: held once a node. what: what ranks are called.
    """
    from cluster import placement

    if placed is not None and not placed.fits:
        yield placement.reason(placed, len(nodes))
        return
    for index, node in enumerate(nodes):
        held = [n for rank, n in enumerate(rank_bytes) if placed is None or placed.assignment[rank] == index]
        total, have = sum(held) + PROCESS_BYTES * len(held) + data_bytes, node.total.get("memory", 0.0)
        if total > have > 0:
            yield f"{len(held)} {what} on {node.address} would need about {size(total)}, the node has {size(have)}"


def milliseconds(seconds: float) -> str:
    """Return a short time: `12.3 ms`."""
    return f"{1000 * seconds:.1f} ms"
