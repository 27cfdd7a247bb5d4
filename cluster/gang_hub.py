"""The actor between a gang's driver and its ranks: reports and words pass through it, and it finds the first cause.

It runs Ray Train (`gang_train.fit`) in a thread of its own, so the driver imports no torch, keeps no thread, and may
be interrupted at any time: the ranks are owned by this process and end with it.

When a rank dies, its neighbours raise "connection closed" at once, before Ray knows of the death. So a rank that
raised is believed only when all others still answer; a rank that is gone comes before one that raised.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cluster import bundles
from cluster.gang_plan import Event, Member, Plan
from cluster.gang_rank import where
from cluster.host import Raised
from cluster.losses import Lost, classify

MAX_WAITING = 8
"""Reports of one rank that may wait for the driver; with more the rank waits too."""

ANSWER_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 10.0


@dataclass
class _Run:
    number: int
    plan: Plan
    thread: threading.Thread | None = None
    members: list[Member] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    watching: asyncio.Task[None] | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    dropped: int = 0
    word: str = ""
    suspected: bool = False
    failed: bool = False
    over: bool = False

    def waiting(self, rank: int) -> int:
        return sum(event.rank == rank and event.kind == "report" for event in self.events)


class Hub:
    """An actor of one gang, for one run at a time. Calls of another run than the present one are not heard."""

    def __init__(self) -> None:
        self._run: _Run | None = None

    # ------------------------------------------------------------------------------------------------ the driver's

    async def prepare(self) -> None:
        """Import what running takes, while the driver does something else."""
        await asyncio.to_thread(_import)

    async def node_id(self) -> str:
        """Return where this actor is."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def launch(self, number: int, plan: Plan) -> None:
        """Begin a run, once: a call whose answer was lost comes again."""
        if self._run is not None and self._run.number == number:
            return
        run = self._run = _Run(number, plan)
        loop = asyncio.get_running_loop()
        run.thread = threading.Thread(target=self._fit, args=(run, loop), name="gang", daemon=True)
        run.thread.start()

    async def take(self, number: int, wait_s: float, taken: int) -> list[Event]:
        """Return what has happened after the first `taken` events; wait for it at most so long.

        Events are kept until the next call says that they have arrived: an answer may be lost on its way.
        """
        run = self._of(number)
        async with run.changed:
            if taken > run.dropped:
                run.events, run.dropped = run.events[taken - run.dropped :], taken
                run.changed.notify_all()
            try:
                await asyncio.wait_for(run.changed.wait_for(lambda: bool(run.events)), wait_s)
            except TimeoutError:
                return []
            return list(run.events)

    async def tell(self, number: int, word: str) -> None:
        """Give the ranks a word, as answer of their later reports."""
        self._of(number).word = word

    async def silent(self, number: int) -> list[tuple[int, str]]:
        """Say for each rank where its program is, those first that do not answer at all."""
        run = self._of(number)
        answers = await asyncio.gather(*(_ask(member, where) for member in run.members))
        said = []
        for member, answer in zip(run.members, answers, strict=True):
            text = "does not answer" if answer is None else answer if isinstance(answer, str) else answer.reason
            said.append((isinstance(answer, str), member.rank, text))
        return [(rank, text) for _, rank, text in sorted(said)]

    async def pending(self, number: int) -> bool:
        """Tell whether the ranks' places are asked for and not there."""
        self._of(number)
        return "PENDING" in (await asyncio.to_thread(bundles.made_by, _own_id())).values()

    async def stop(self, number: int) -> bool:
        """End every process of a run and give its places back; False when that did not work in time."""
        run = self._run
        if run is None or run.number != number:
            return True
        run.over = True
        return await asyncio.to_thread(_end, run)

    # ------------------------------------------------------------------------------------------------- the ranks'

    async def began(self, number: int, rank: int) -> None:
        """Note that a rank's program begins."""
        await self._add(self._of(number), Event("began", rank))

    async def report(self, number: int, rank: int, payload: Any) -> str:
        """Keep a report for the driver; return the driver's word once the driver is not too far behind."""
        run = self._of(number)
        await self._add(run, Event("report", rank, payload))
        async with run.changed:
            await run.changed.wait_for(lambda: run.waiting(rank) < MAX_WAITING)
        return run.word

    async def returned(self, number: int, rank: int) -> None:
        """Note that a rank's program is through."""
        await self._add(self._of(number), Event("returned", rank))

    async def raised(self, number: int, rank: int, reason: str, traceback: str) -> None:
        """Take in that a rank's program raised; the rank is held in this call until it is ended."""
        run = self._of(number)
        if not run.suspected:
            run.suspected = True
            await self._judge(run, rank, Raised(reason, traceback))
        await asyncio.Event().wait()

    # ------------------------------------------------------------------------------------------------------ inside

    def _of(self, number: int) -> _Run:
        if self._run is None or self._run.number != number or self._run.over:
            raise RuntimeError(f"run {number} of this gang is over")
        return self._run

    async def _add(self, run: _Run, event: Event) -> None:
        async with run.changed:
            run.events.append(event)
            run.changed.notify_all()

    async def _fail(self, run: _Run, rank: int, failure: Lost | Raised) -> None:
        if not run.failed:
            run.failed = True
            await self._add(run, Event("failed", rank, failure))

    async def _judge(self, run: _Run, rank: int, failure: Raised) -> None:
        """Decide whether a rank that raised is the cause, or only follows from the loss of another."""
        others = [member for member in run.members if member.rank != rank]
        answers = await asyncio.gather(*(_ask(member) for member in others))
        for member, answer in zip(others, answers, strict=True):
            if _lost(answer):
                await self._fail(run, member.rank, answer)
        mute = [f"rank {member.rank}" for member, answer in zip(others, answers, strict=True) if answer is None]
        if mute:
            failure = failure._replace(reason=f"{failure.reason}; meanwhile {', '.join(mute)} did not answer")
        await self._fail(run, rank, failure)

    async def _watch_start(self, run: _Run) -> None:
        """See ranks die while they join their group, when Ray Train's controller does not look."""

        async def watch(member: Member) -> None:
            answer = await _ask(member, timeout_s=None)
            if _lost(answer) and not run.over:
                await self._fail(run, member.rank, answer)

        await asyncio.gather(*(watch(member) for member in run.members))

    def _fit(self, run: _Run, loop: asyncio.AbstractEventLoop) -> None:
        """Run Ray Train; in a thread."""

        def wait(coroutine: Coroutine[Any, Any, None]) -> None:
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(STOP_TIMEOUT_S)

        def starts() -> None:
            if run.over:
                raise RuntimeError("the run is over before it began")

        error: Exception | None = None
        try:
            from cluster.gang_train import Listener, fit

            placed, found = partial(self._placed, run), partial(self._found, run)
            fit(run.plan, Listener(starts, lambda members: wait(placed(members)), lambda what: wait(found(what))))
        except Exception as caught:
            error = caught
        asyncio.run_coroutine_threadsafe(self._ended(run, error), loop)

    async def _placed(self, run: _Run, members: list[Member]) -> None:
        run.members = members
        await self._add(run, Event("placed", value=[member._replace(actor=None) for member in members]))
        run.watching = asyncio.create_task(self._watch_start(run))

    async def _found(self, run: _Run, failures: dict[int, Lost | Raised]) -> None:
        order = sorted(failures, key=lambda rank: (isinstance(failures[rank], Raised), rank))
        await self._fail(run, order[0], failures[order[0]])

    async def _ended(self, run: _Run, error: Exception | None) -> None:
        if error is None:
            await self._add(run, Event("ended"))
        elif not run.over:
            cause = getattr(error, "controller_failure", error)
            reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
            await self._fail(run, -1, Raised(f"{type(cause).__name__}: {reason}", str(error)))


async def _ask(member: Member, question: Any = None, timeout_s: float | None = ANSWER_TIMEOUT_S) -> Any:
    """Return a rank's answer, a `Lost` or `Raised` when it can give none, or None when it does not answer in time."""
    from ray.exceptions import RayError

    async def answer() -> Any:
        return await (member.actor.__ray_call__.remote(question) if question else member.actor.__ray_ready__.remote())

    try:
        return await asyncio.wait_for(answer(), timeout_s)
    except TimeoutError:
        return None
    except RayError as error:
        return classify(error)


def _lost(answer: Any) -> bool:
    return isinstance(answer, Lost)


def _end(run: _Run) -> bool:
    """Kill the ranks, give the places back, and see Ray Train's thread and the processes end."""
    import ray

    for member in run.members:
        ray.kill(member.actor)
    bundles.release_made_by(_own_id())
    if run.thread is not None:
        run.thread.join(STOP_TIMEOUT_S)
        if run.thread.is_alive():
            return False
    bundles.release_made_by(_own_id())
    pings = [member.actor.__ray_ready__.remote() for member in run.members]
    _, alive = ray.wait(pings, num_returns=len(pings), timeout=STOP_TIMEOUT_S) if pings else ([], [])
    return not alive


def _import() -> None:
    import cluster.gang_train  # noqa: F401


def _own_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_actor_id())
