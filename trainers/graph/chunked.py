"""The view that layers of a stage have of the graph: the chunk under way, and what is known of all others.

It numbers what layers ask, in the order in which they ask it, and makes a site for each question when it is first
asked. Without a chunk it answers exactly, for all vertices of its way at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainers.graph.ages import Ages
from trainers.graph.exchange import Exchange
from trainers.graph.gathers import Gather
from trainers.graph.reach import Reach
from trainers.graph.sites import Constant, Site
from trainers.graph.tables import Returns, before, unchanged


class ChunkView:
    """What a stage's layers see of the graph.

    Args:
        features: of the first stage, the input rows of all vertices that this way reads; None elsewhere.
        history: rows to begin with, by site name; see `history`.
        refresh, correction: see `settings.Settings`. keep: whether aggregates are kept for a second computation.
    """

    def __init__(
        self, reach: Reach, exchange: Exchange, features: Tensor | None, *, refresh: int, correction: float, keep: bool
    ) -> None:
        self.reach, self.exchange, self.features = reach, exchange, features
        self._options: dict[str, Any] = {"refresh": refresh, "correction": correction, "keep": keep}
        self._sites: dict[tuple[int, int], Site | Gather] = {}
        self._ages: dict[tuple[str, bool], Ages] = {}
        self._constants: dict[str, Constant] = {}
        self._given: dict[str, Tensor] = {}
        self._slot: int | None = None
        self._again = False
        self._layer = self._asked = 0
        self._done: set[int] = set()
        self._version = 0 if features is None else features._version
        self.lasting: Callable[[Tensor], None] | None = None
        """Told of rows that are handed out in every epoch and stay in memory."""

    # ------------------------------------------------------------------------------------- what the stage tells it

    def begin_epoch(self) -> None:
        """Begin an epoch."""
        self._done.clear()
        for site in self._sites.values():
            site.begin()
        for ages in self._ages.values():
            ages.begin()

    def end_epoch(self, epoch: int) -> None:
        """End an epoch, from 1."""
        for site in self._sites.values():
            site.end(epoch)

    def enter(self, slot: int | None) -> None:
        """Turn to a chunk, for the first or the second time in this epoch; None to all vertices, exactly.

        Raises:
            RuntimeError: when a layer has changed the input features.
        """
        if self.features is not None:
            unchanged(self.features, self._version)
        self._slot, self._again = slot, slot in self._done
        if slot is not None:
            self._done.add(slot)

    def forget(self) -> None:
        """Take the next forward of every chunk for its first."""
        self._done.clear()

    def widths(self) -> dict[int, list[tuple[int, Returns]]]:
        """Return for each layer that aggregates, by its index, each site's width and whose gradients come back."""
        found: dict[int, list[tuple[int, Returns]]] = {}
        for (layer, _), site in sorted(self._sites.items()):
            found.setdefault(layer, []).append((site.width, site.returns))
        return found

    def at(self, layer: int) -> None:
        """Say which layer asks next."""
        self._layer, self._asked = layer, 0

    def history(self) -> dict[str, Tensor]:
        """Return the older rows that the next epoch begins with, by site name."""
        tables = {site.name: site.table.history for site in self._sites.values()}
        return {**self._given, **{name: rows for name, rows in tables.items() if rows is not None}}

    def remember(self, history: dict[str, Tensor]) -> None:
        """Take older rows; sites that are yet to be made take theirs then."""
        self._given = dict(history)

    # ------------------------------------------------------------------------------------------ what layers ask it

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        """As `view.View.propagate`."""
        place = self._place()
        if self._is_input(x):
            constant = self._constant(kind).of(self._slot)
            if self.lasting is not None and self._slot is not None:
                self.lasting(constant)
            return constant
        site = self._sites.get(place) or self._made(place, Site, kind, x, kind, back=self._age(kind, backward=True))
        if self._slot is None:
            return site.infer(x)
        return _Through.apply(x, site, self._slot, self._again)  # type: ignore[no-any-return]

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        """As `view.View.sources`."""
        place = self._place()
        if self._is_input(x):
            return self._input_sources(self_loops)
        site = self._sites.get(place) or self._made(place, Gather, self_loops, x, "sum")
        if self._slot is None:
            return site.infer(x)
        return _Through.apply(x, site, self._slot, self._again), site.edges(self._slot)[1]

    # ------------------------------------------------------------------------------------------------------ inside

    def _is_input(self, x: Tensor) -> bool:
        """Return whether rows are the input features as they are."""
        if self.features is None:
            return False
        begin, size = (0, self.reach.num_own)
        if self._slot is not None:
            begin, size = self.reach.rows(self._slot).start, self.reach.size(self._slot)
        there = self.features[begin : begin + size]
        return x.data_ptr() == there.data_ptr() and x.shape == there.shape and x.stride() == there.stride()

    def _constant(self, kind: str) -> Constant:
        if kind not in self._constants:
            assert self.features is not None
            self._constants[kind] = Constant(self.reach.sheets(kind, backward=False).products, self.features)
        return self._constants[kind]

    def _input_sources(self, self_loops: bool) -> tuple[Tensor, Tensor]:
        """Return the input features themselves, which are known of all chunks and ways."""
        assert self.features is not None
        if self._slot is None:
            return self.features, self.reach.all_edges(self_loops)
        read, edges = self.reach.edges(self._slot, self_loops)
        return self.features[read], edges

    def _place(self) -> tuple[int, int]:
        """Number a question, one about the input too: in evaluation, without dropout, there are more of those."""
        place = (self._layer, self._asked)
        self._asked += 1
        return place

    def _made(self, place: tuple[int, int], make: Any, what: Any, x: Tensor, kind: str, **more: Any) -> Any:
        """Return a new site, with the older rows that were given for it."""
        name = f"{place[0]}.{place[1]}"
        ages = self._age(kind, backward=False)
        site = make(name, len(self._sites), what, self.reach, self.exchange, x, ages, **more, **self._options)
        if name in self._given and site.table.history is not None:
            site.table.history.copy_(self._given.pop(name))
        self._sites[place] = site
        return site

    def _age(self, kind: str, *, backward: bool) -> Ages:
        """Return which rows of a matrix, or of its transpose, are read where; the same for all sites."""
        if (kind, backward) not in self._ages:
            several, refresh = self.reach.slots > 1, self._options["refresh"]
            if backward:
                options: Any = {"before": "zero" if several else "itself", "correction": self._options["correction"]}
            else:
                options = {"before": before(refresh, several)}
            self._ages[kind, backward] = Ages(self.reach, kind, backward=backward, **options)
        return self._ages[kind, backward]


class Dry:
    """Two vertices without edges between them: enough to see what layers return."""

    def propagate(self, x: Tensor, kind: str) -> Tensor:
        """As `view.View.propagate`, of a graph in which every vertex has one edge, to itself."""
        return x * 1

    def sources(self, x: Tensor, self_loops: bool = False) -> tuple[Tensor, Tensor]:
        """As `view.View.sources`, of the same graph."""
        own = torch.arange(len(x), device=x.device)
        return x, torch.stack([own, own])


class _Through(torch.autograd.Function):
    """A site's forward and backward, as autograd sees them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site | Gather, slot: int, again: bool) -> Tensor:
        ctx.site, ctx.slot = site, slot
        return site.forward(slot, x.detach(), again)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.site.backward(ctx.slot, gradient.contiguous()), None, None, None
