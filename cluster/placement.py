"""Where workers fit, computed before anything starts: an assignment of bundles to nodes, and need versus have.

Ray waits for ever on a placement group that cannot be had, so we count first. Pure functions of the numbers given.
For identical bundles the count of those that fit is exact; for unlike bundles it is first-fit, largest first,
which may miss a packing that exists. The assignment shows that workers fit; Ray makes its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from cluster.inventory import Node

Bundle = Mapping[str, float]
Strategy = Literal["pack", "spread"]

_GRAIN = 10_000  # Ray counts resources in ten-thousandths


class Need(NamedTuple):
    """One resource: what workers need and what nodes have.

    Args:
        resource: its name in Ray.
        per_worker: the largest need of one worker.
        all_workers: the need of all together.
        cluster: what all nodes have together.
        largest_node: the most that one node has.
        available: what no other work holds now.
        missing: how much more the cluster must have; 0 when this resource is enough.
    """

    resource: str
    per_worker: float
    all_workers: float
    cluster: float
    largest_node: float
    available: float
    missing: float


class Placement(NamedTuple):
    """For each bundle the index of its node, or None where it does not fit; and the table behind it."""

    assignment: tuple[int | None, ...]
    needs: tuple[Need, ...]

    @property
    def num_placed(self) -> int:
        return sum(node is not None for node in self.assignment)

    @property
    def fits(self) -> bool:
        return None not in self.assignment


def place(bundles: Sequence[Bundle], nodes: Sequence[Node], strategy: Strategy = "pack") -> Placement:
    """Assign bundles to nodes by their total resources.

    Args:
        strategy: `pack` fills a node before it opens the next; `spread` takes the node with fewest bundles.
    """
    free = [{name: _grains(amount) for name, amount in node.total.items()} for node in nodes]
    wanted = [{name: _grains(amount) for name, amount in bundle.items() if amount > 0} for bundle in bundles]
    assignment: list[int | None] = [None] * len(bundles)
    load = [0] * len(nodes)
    for index in sorted(range(len(bundles)), key=lambda i: (-sum(wanted[i].values()), i)):
        fitting = [
            node for node in range(len(nodes)) if all(free[node].get(name, 0) >= n for name, n in wanted[index].items())
        ]
        if not fitting:
            continue
        if strategy == "spread":
            chosen = min(fitting, key=lambda node: (load[node], node))
        else:
            chosen = min(fitting, key=lambda node: (-load[node], node))
        assignment[index] = chosen
        load[chosen] += 1
        for name, amount in wanted[index].items():
            free[chosen][name] -= amount
    return Placement(tuple(assignment), _needs(bundles, nodes))


def _needs(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> tuple[Need, ...]:
    rows = []
    for name in sorted({name for bundle in bundles for name, amount in bundle.items() if amount > 0}):
        per_worker = max(bundle.get(name, 0.0) for bundle in bundles)
        together = sum(bundle.get(name, 0.0) for bundle in bundles)
        have = [node.total.get(name, 0.0) for node in nodes]
        largest = max(have, default=0.0)
        missing = max(together - sum(have), per_worker - largest, 0.0)
        free = sum(node.available.get(name, 0.0) for node in nodes)
        rows.append(Need(name, per_worker, together, sum(have), largest, free, missing))
    return tuple(rows)


def reason(placement: Placement, num_nodes: int) -> str:
    """Say in one sentence how many workers fit and what is short."""
    total = len(placement.assignment)
    where = "1 node" if num_nodes == 1 else f"{num_nodes} nodes"
    if placement.fits:
        return f"{total} of {workers(total)} fit on {where}"
    short = [f"{amount(need.missing, need.resource)} {need.resource}" for need in placement.needs if need.missing > 0]
    lacking = f"short of {' and '.join(short)}" if short else "each node has too little left for one more"
    return f"{placement.num_placed} of {workers(total)} fit on {where}: {lacking}"


def table(placement: Placement) -> str:
    """Render need versus have as aligned text."""
    head = ("resource", "one worker", "all workers", "cluster", "largest node", "available", "missing")
    body = [
        (need.resource, *(amount(value, need.resource) for value in need[1:-1]), _missing(need))
        for need in placement.needs
    ]
    widths = [max(len(row[column]) for row in (head, *body)) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in cells).rstrip()
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in (head, *body))
    ]
    return "\n".join(lines)


def workers(count: int) -> str:
    """Write `1 worker` or `3 workers`."""
    return f"{count} worker" if count == 1 else f"{count} workers"


def _missing(need: Need) -> str:
    return amount(need.missing, need.resource) if need.missing > 0 else "-"


def amount(value: float, resource: str) -> str:
    """Write an amount: `2`, `0.5`, or `3.0 GiB` for memory."""
    if resource == "memory":
        return f"{value / 2**30:.1f} GiB"
    return f"{value:g}"


def _grains(value: float) -> int:
    return round(value * _GRAIN)
