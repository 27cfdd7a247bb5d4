"""What the page of a federated run has that others have not: its clients, and how the data is spread over them."""

from __future__ import annotations

import math
from collections import Counter

from orchestrator.report import charts, pictures, scales
from orchestrator.report.charts import Axis, Line
from orchestrator.report.page import Figure, Section
from orchestrator.report.reading import Facts

_MOST_RASTER_CLIENTS = 400


def participation(facts: Facts) -> Section | None:
    """Return the section on which clients took part, or None when no round names any."""
    if not facts.rounds or not facts.num_clients:
        return None
    taken = Counter(client for clients in facts.rounds.values() for client in clients)
    often = [taken.get(client, 0) for client in range(facts.num_clients)]
    least, most = min(often), max(often)
    width = max(1, math.ceil((most - least + 1) / 24))
    groups = Counter((value - least) // width for value in often)
    indices = range((most - least) // width + 1)
    starts = [least + index * width for index in indices]
    labels = [str(start) if width == 1 else f"{start}\N{EN DASH}{start + width - 1}" for start in starts]
    histogram = charts.bars(
        labels,
        [groups[index] for index in indices],
        Axis("rounds a client took part in"),
        Axis("clients", scales.count, whole=True),
    )
    figures = [Figure("Clients by number of rounds taken part in", histogram)]
    if "train/num_examples" in facts.series:
        examples = facts.series["train/num_examples"]
        curve = Line("examples", examples.step, examples.value)
        figures.append(
            Figure(
                "Examples trained on",
                charts.lines([curve], charts.steps(facts.unit), Axis("examples", scales.count, zero=True)),
            )
        )
    note = ""
    if facts.num_clients <= _MOST_RASTER_CLIENTS:
        picture = pictures.participation(facts.rounds, facts.num_clients)
        figures.append(Figure("Who took part when", picture, wide=True))
    else:
        note = f"With {facts.num_clients:,} clients, the picture of who took part when is left out."
    return Section("clients", "Client participation", figures=figures, note=note)


def partition(facts: Facts) -> Section | None:
    """Return the section on who holds what, or None when that is not known."""
    told = facts.partition
    if not told or not told.get("clients"):
        return None
    clients = told["clients"]
    counts = [list(client["counts"]) for client in clients]
    names = [f"client {name}" if name.isdecimal() else name for name in (str(client["name"]) for client in clients)]
    totals = [sum(column) for column in counts]
    num_classes = max(map(len, counts))
    class_names = [str(name) for name in told.get("class_names") or range(num_classes)]
    sizes = told.get("sizes", {})
    shown = f", the first {len(clients)} shown" if len(clients) < facts.num_clients else ""
    spread = ", ".join(f"{key} {scales.count(sizes[key])}" for key in ("min", "median", "max") if key in sizes)
    figures = [Figure("Examples a client", pictures.sizes(totals, names), wide=True)]
    if num_classes > 1:
        heat = pictures.classes(counts, class_names, names)
        figures.append(
            Figure("Classes a client holds", heat, wide=True, caption="Stronger is more; square-root scale.")
        )
    note = f"{told.get('kind', 'unknown')} over {facts.num_clients:,} clients{shown}. Examples a client: {spread}."
    return Section("partition", "Partition of the data", figures=figures, note=note)
