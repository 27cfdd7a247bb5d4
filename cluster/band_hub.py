"""The hub of a band: it starts the ranks as actors, sees them end, starts some again, and tells them of each other.

A rank that is gone is told to the driver as `lost`, and nothing else changes: the others may be waiting for it, and it
may be replaced. A band is over when all programs have returned. Until then also those that returned are needed: they
hold what others may want. A program that raises ends the run, as in a gang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cluster.band_rank import Address, Rank
from cluster.crew import options
from cluster.gang_hub import Hub, _Run
from cluster.gang_plan import Event, Member, Plan
from cluster.host import Raised
from cluster.losses import Lost, classify

LOOK_S = 1.0
"""How often a wait for places sees that the run is over."""


class BandHub(Hub):
    """An actor of one band, for one run at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._addresses: dict[int, Address] = {}
        self._returned: set[int] = set()
        self._kept = (-1, -1)
        self._group: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------ the driver's

    async def prepare(self) -> None:
        """Nothing to import: ranks are plain actors."""

    async def launch(self, number: int, plan: Plan) -> None:
        """As `Hub.launch`."""
        if self._run is None or self._run.number != number:
            self._addresses, self._returned, self._kept = {}, set(), (-1, -1)
        await super().launch(number, plan)

    async def replace(self, number: int, rank: int, settings: list[Any]) -> None:
        """Start a rank that was lost again."""
        import ray

        run = self._of(number)
        ray.kill(run.members[rank].actor)
        self._go(self._start(run, rank, settings))

    async def keep(self, number: int, whole: int, known: int) -> None:
        """Take in which steps nobody needs to begin with any more, and of which steps the driver knows all."""
        run = self._of(number)
        async with run.changed:
            self._kept = (whole, known)
            run.changed.notify_all()

    # ------------------------------------------------------------------------------------------------- the ranks'

    async def announce(self, number: int, rank: int, host: str, port: int, word: bytes) -> None:
        """Note where a rank listens."""
        run = self._of(number)
        async with run.changed:
            before = self._addresses.get(rank)
            self._addresses[rank] = Address(before.life + 1 if before else 1, host, port, word)
            run.changed.notify_all()

    async def find(self, number: int, rank: int, life: int, wait_s: float) -> Address | None:
        """Return where a rank listens, once it has lived more often than `life`; None after so long."""
        run = self._of(number)

        def there() -> bool:
            return rank in self._addresses and self._addresses[rank].life > life

        async with run.changed:
            try:
                await asyncio.wait_for(run.changed.wait_for(there), wait_s)
            except TimeoutError:
                return None
            return self._addresses[rank]

    async def kept(self, number: int, whole: int, known: int) -> tuple[int, int]:
        """Return what `keep` said last, once it is more than this."""
        run = self._of(number)
        async with run.changed:
            await run.changed.wait_for(lambda: self._kept != (whole, known))
            return self._kept

    async def returned(self, number: int, rank: int) -> None:
        """As `Hub.returned`; with the last one the run is over."""
        run = self._of(number)
        await super().returned(number, rank)
        self._returned.add(rank)
        if len(self._returned) == run.plan.num_ranks:
            await self._add(run, Event("ended"))

    # ------------------------------------------------------------------------------------------------------ inside

    def _fit(self, run: _Run, loop: asyncio.AbstractEventLoop) -> None:
        """Get places and start the ranks; in a thread."""
        from ray.util.placement_group import placement_group

        try:
            self._group = placement_group(
                [dict(run.plan.resources)] * run.plan.num_ranks, strategy=run.plan.strategy.upper()
            )
            while not run.over and not self._group.wait(timeout_seconds=LOOK_S):
                pass
            if not run.over:
                asyncio.run_coroutine_threadsafe(self._start_all(run), loop)
        except Exception as error:
            asyncio.run_coroutine_threadsafe(self._ended(run, error), loop)

    async def _start_all(self, run: _Run) -> None:
        from ray.exceptions import RayError

        actors = [self._actor(run, rank) for rank in range(run.plan.num_ranks)]
        try:
            places = await asyncio.gather(*(actor.where.remote() for actor in actors))
        except RayError as error:
            await self._fail(run, -1, classify(error))
            return
        run.members = [
            Member(rank, node, pid, actor) for rank, ((node, pid), actor) in enumerate(zip(places, actors, strict=True))
        ]
        await self._add(run, Event("placed", value=[member._replace(actor=None) for member in run.members]))
        for member in run.members:
            self._go(self._follow(run, member, run.plan.task.settings))

    async def _start(self, run: _Run, rank: int, settings: list[Any]) -> None:
        from ray.exceptions import RayError

        self._returned.discard(rank)
        actor = self._actor(run, rank)
        run.members[rank] = run.members[rank]._replace(actor=actor)
        try:
            node, pid = await actor.where.remote()
        except RayError as error:
            await self._gone(run, run.members[rank], classify(error))
            return
        member = run.members[rank] = Member(rank, node, pid, actor)
        await self._add(run, Event("replaced", rank, member._replace(actor=None)))
        await self._follow(run, member, settings)

    async def _follow(self, run: _Run, member: Member, settings: list[Any]) -> None:
        """Let a rank begin, and see its process end."""
        from ray.exceptions import RayError

        task = run.plan.task._replace(settings=settings)
        member.actor.perform.remote(task, member.rank, run.plan.num_ranks)
        try:
            await member.actor.live.remote()
        except RayError as error:
            await self._gone(run, member, classify(error))

    async def _gone(self, run: _Run, member: Member, why: Lost | Raised) -> None:
        if run.over or run.members[member.rank].actor is not member.actor:
            return
        if isinstance(why, Raised):
            await self._fail(run, member.rank, why)
        else:
            await self._add(run, Event("lost", member.rank, why))

    def _actor(self, run: _Run, rank: int) -> Any:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        place = PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=rank, placement_group_capture_child_tasks=False
        )
        made = ray.remote(Rank).options(
            **options(run.plan.resources), scheduling_strategy=place, max_concurrency=Rank.THREADS
        )
        return made.remote(dict(run.plan.environment))

    def _go(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
