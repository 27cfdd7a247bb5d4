"""What a sharded run would do, before it does it: how tensors lie at each operator, and what that sends and holds.

One batch is computed in this process, as rank 0 of a group that moves nothing; nothing is started. Layers that are
alike, such as the blocks of a transformer, are shown once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.config import Loaded
from orchestrator.gang_plan import GangPlan, common
from orchestrator.preparing import Prepared
from orchestrator.progress import size
from orchestrator.sharded_layouts import Layouts, collectives, divide
from trainers.sharded.forecast import Line, is_view

HINT = "strategy.mesh=[N], cluster.resources_per_worker.CPU=0.5, or cluster.workers=0"
_HIDDEN = ("aten.ones_like", "aten.zeros_like", "aten.empty_like")


@dataclass(frozen=True, kw_only=True)
class ShardedPlan(GangPlan):
    """What a sharded run would do."""

    layouts: Layouts

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        """As `GangPlan.sections`."""
        mesh = " x ".join(map(str, self.layouts.settings.mesh))
        yield f"parameters on a mesh of {mesh}", list(self._parameters())
        yield "signatures of one batch, S(i) split along i, B copied, P a sum to be added up", list(self._signatures())
        yield "a step, bytes of all ranks", list(self._step())
        yield "layouts, by the formulas", list(self._alternatives())

    def _parameters(self) -> Iterator[str]:
        groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name, entries in self.layouts.counted.placements.items():
            groups.setdefault((_alike(name), entries), []).append(name)
        width = max(len(alike) for alike, _ in groups)
        for (alike, entries), names in groups.items():
            times = f"  x {len(names)}" if len(names) > 1 else ""
            yield f"{alike:<{width}}  {' '.join(entries)}{times}"
        axes = self.layouts.settings.batch_axes
        yield ""
        yield f"examples are split over axis {', '.join(map(str, axes))}" if axes else "every rank has every example"

    def _signatures(self) -> Iterator[str]:
        rows: dict[tuple[str, ...], int] = {}
        for line in self.layouts.counted.lines:
            shown = _row(line)
            if shown is not None:
                rows[shown] = rows.get(shown, 0) + 1
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row, times in rows.items():
            cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            yield (cells + (f"  x {times}" if times > 1 else "")).rstrip()
        for by, times in self.layouts.counted.step_counts.items():
            num_bytes = self.layouts.counted.step_bytes[by]
            where = f"{'(gradients and norm)':<{widths[0]}}  {'boxing':<{widths[1]}}"
            yield f"{where}  {by} {size(num_bytes)} in {times} of them"
        for what in self.layouts.unknown:
            yield f"no formula for {what}: the planner lets every rank compute it whole"

    def _step(self) -> Iterator[str]:
        layouts = self.layouts
        for name, told in collectives(layouts).items():
            yield f"{name:<28}{size(told['bytes']):>14}   in {told['count']} of them"
        yield f"{'counted':<28}{layouts.sent_bytes:>14,}"
        if not layouts.unknown:
            paper = layouts.paper.step_bytes(layouts.settings.accumulate)
            yield f"{'by the formulas':<28}{int(paper):>14,}   losses and norms, which are single numbers, left out"
        yield f"{'weights of a rank':<28}{size(layouts.counted.state_bytes):>14}"
        if layouts.settings.memory is not None:
            told = f"of a batch, in 8 bits; {size(layouts.counted.plain_activation_bytes)} as they are"
            yield f"{'activations kept':<28}{size(layouts.counted.activation_bytes):>14}   {told}"
        yield f"{'memory of a rank':<28}{size(layouts.rank_bytes):>14}   weights, gradients, optimizer, activations"

    def _alternatives(self) -> Iterator[str]:
        yield f"{'layout':<16}{'sent a batch':>14}{'memory of a rank':>20}   splits"
        for layout in (self.layouts.paper._replace(name="this one"), *self.layouts.alternatives):
            names = sorted({f"{_alike(name)} {' '.join(entries)}" for name, entries in layout.placements.items()})
            told = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "no parameter"
            yield f"{layout.name:<16}{size(layout.sent_bytes):>14}{size(layout.rank_bytes):>20}   {told}"


def plan_sharded(loaded: Loaded, prepared: Prepared) -> ShardedPlan:
    """Work out what a sharded run would do.

    Raises:
        ConfigError: when the model cannot lie as asked. PlacementError: when the cluster does not answer.
    """
    layouts = divide(prepared, loaded.where, compare=True)
    each = [layouts.rank_bytes] * layouts.settings.num_ranks
    return ShardedPlan(**common(loaded, prepared, each, prepared.dataset.num_bytes), hint=HINT, layouts=layouts)


def _row(line: Line) -> tuple[str, ...] | None:
    """Return what is shown of an operator; None for what only looks at a tensor differently and sends nothing."""
    if (is_view(line) or line.operator.startswith(_HIDDEN)) and not line.collectives:
        return None
    name = line.operator.removeprefix("aten.").split(".")[0]
    layer = _alike(line.layer) or "(model and loss)"
    where = f"{layer}, backward" if line.backward else layer
    inputs = ", ".join(placed for _, placed in line.inputs if placed != "plain") or "P"
    sent = ", ".join(f"{by} {size(num_bytes)}" for by, num_bytes in line.collectives)
    return where, name, f"{inputs} -> {line.output[1] or 'B'}", sent


def _alike(name: str) -> str:
    """Return a name with its numbers left open, so that alike layers are called alike."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
