"""A gang: a fixed set of ranks in one torch.distributed group, which run one program and report to the driver.

    run       count, let Ray Train start the ranks and join them, yield their reports as they come
    a loss    RemoteFailure names the rank that was first, never a neighbour that lost its connection
    a raise   the same, with the program's own traceback
    close     however the iteration ends, every process of it is ended and its places are given back

Ranks talk to each other directly; the driver hears reports and may give a word. Nothing is retried here: whoever
calls knows the checkpoints, and calls `run` again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cluster import bundles, losses, placement
from cluster.errors import PlacementFailed, RemoteFailure
from cluster.executor import Notify
from cluster.gang_hub import STOP_TIMEOUT_S, Hub
from cluster.gang_plan import Event, Member, Plan, environment
from cluster.gang_rank import Task
from cluster.host import Raised
from cluster.losses import Lost
from cluster.pool import Shared, resolve

HUB_TIMEOUT_S = 20.0
HUB_STARTS = 3
"""So often the hub is started, where it is gone before it has launched anything, until a gang is lost."""

GROUP_MARGIN_S = 60.0
"""The process group waits so much longer than the driver, so that a stall is told by who is silent."""


class RankReport(NamedTuple):
    """What a rank's program gave to `context.report`."""

    rank: int
    payload: Any


class Missing(NamedTuple):
    """A rank of a `Band` that is gone while the others go on; the caller may `replace` it, or end the run."""

    rank: int
    worker: str
    node: str
    reason: str


Told = RankReport | Missing | None


class Gang:
    """A fixed number of ranks on the cluster this process is connected to; use as a context manager.

    Args:
        num_ranks: how many. resources_per_rank: what each holds. placement: `pack` on few nodes, or `spread`.
        backend: of torch.distributed. threads: intra-op threads of each rank.
        start_timeout_s: longest wait for places and for the ranks to begin.
        stall_timeout_s: longest wait for a report of any rank.
        notify: told `placed`, `worker_started` and `worker_lost`.
        paths: folders put in front of the import path on ranks, where they exist.
    """

    def __init__(
        self,
        num_ranks: int,
        resources_per_rank: Mapping[str, float],
        placement: placement.Strategy = "pack",
        *,
        backend: str = "gloo",
        threads: int = 1,
        start_timeout_s: float = 120.0,
        stall_timeout_s: float = 1800.0,
        notify: Notify | None = None,
        paths: Sequence[str] = (),
    ) -> None:
        if num_ranks < 1:
            raise ValueError(f"num_ranks is {num_ranks}, expected at least 1")
        self._num_ranks = num_ranks
        self._resources = {name: float(amount) for name, amount in resources_per_rank.items()}
        self._strategy = placement
        self._backend = backend
        self._threads = threads
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._notify = notify or (lambda kind, fields: None)
        self._paths = tuple(str(path) for path in paths)
        self._hub: Any = None
        self._number = 0
        self._running = False
        self._taken = 0
        self._members: dict[int, Member] = {}

    def share(self, value: Any) -> Shared:
        """Keep one copy of `value` in the object store; ranks see it in place of the handle, in or one level below
        the settings."""
        import ray

        return Shared(ray.put(value))

    def tell(self, word: str) -> None:
        """Give the ranks a word: the answer of their later reports, until the run is over."""
        if self._running and self._hub is not None:
            self._hub.tell.remote(self._number, word)

    def run(self, program: str, settings: Mapping[str, Any], *, beat_s: float | None = None) -> Iterator[Told]:
        """Call `program(context, **settings)` on every rank and yield reports until all have returned.

        Args:
            program: `package.module:function`, imported on the ranks.
            beat_s: yield None as often while nothing is reported, so that the caller may look up; None never.

        Raises:
            PlacementFailed: the ranks do not fit, or do not begin in time.
            RemoteFailure: a rank raised, died or all are silent; `call_index` is the rank.
        """
        if self._running:
            raise RuntimeError("the gang runs a program already; finish or close that iteration first")
        bundles.count(self._resources, self._num_ranks, self._strategy)
        self._running = True
        self._number += 1
        try:
            yield from self._run(program, settings, beat_s)
        finally:
            self._running = False
            self._stop()

    def _run(self, program: str, settings: Mapping[str, Any], beat_s: float | None) -> Iterator[Told]:
        self._members, self._taken = {}, 0
        self._launch(program, settings)
        begun: set[int] = set()
        deadline = time.monotonic() + self._start_timeout_s
        while True:
            left_s = deadline - time.monotonic()
            events = self._take(left_s if beat_s is None else min(left_s, beat_s))
            if not events and beat_s is not None and left_s > beat_s:
                yield None
                continue
            if not events and len(begun) < self._num_ranks:
                raise self._not_started(begun)
            if not events:
                raise self._stalled()
            for event in events:
                if event.kind == "placed":
                    self._placed(event.value)
                elif event.kind == "began":
                    begun.add(event.rank)
                elif event.kind == "report":
                    yield RankReport(event.rank, event.value)
                elif event.kind == "lost":
                    yield self._missing(event.rank, event.value)
                elif event.kind == "failed":
                    raise self._failure(event.rank, event.value)
                elif event.kind == "ended":
                    return
            if len(begun) == self._num_ranks:
                deadline = time.monotonic() + self._stall_timeout_s

    def _launch(self, program: str, settings: Mapping[str, Any]) -> None:
        import ray

        shared = ray.put({name: _references(value) for name, value in settings.items()})
        on_gpu = self._resources.get("GPU", 0) > 0
        patience_s = self._stall_timeout_s + GROUP_MARGIN_S
        for further in reversed(range(HUB_STARTS)):
            task = Task(self._start_hub(), self._number, program, [shared], self._paths, on_gpu, patience_s)
            plan = Plan(
                task,
                self._num_ranks,
                self._resources,
                self._strategy,
                self._backend,
                environment(self._threads),
                self._start_timeout_s,
                patience_s,
            )
            try:
                self._ask("launch", plan)
                return
            except RemoteFailure:
                if not further:
                    raise
                self._stop()

    def _take(self, wait_s: float) -> list[Event]:
        wait_s = max(wait_s, 0.0)
        events: list[Event] = self._ask("take", wait_s, self._taken, timeout_s=wait_s + HUB_TIMEOUT_S)
        self._taken += len(events)
        return events

    def _ask(self, method: str, *args: Any, timeout_s: float = HUB_TIMEOUT_S) -> Any:
        """Call the hub, whose own loss is a failure of the gang."""
        import ray
        from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

        deadline = time.monotonic() + HUB_TIMEOUT_S
        try:
            while True:
                try:
                    return ray.get(getattr(self._hub, method).remote(self._number, *args), timeout=timeout_s)
                except ActorUnavailableError:  # for a moment, while another node dies
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)
        except RayActorError as error:
            reason = f"the actor that passes reports on is gone: {losses.classify(error).reason}"
        except GetTimeoutError:
            reason = f"the actor that passes reports on did not answer within {timeout_s:g} s"
        raise RemoteFailure(reason, "the gang", "", -1, lost=True)

    def _placed(self, members: list[Member]) -> None:
        self._members = {member.rank: member for member in members}
        self._notify("placed", {"workers": self._num_ranks, "resources": self._resources})
        for member in members:
            self._notify("worker_started", {"worker": f"rank {member.rank}", "node": member.node, "pid": member.pid})

    def _missing(self, rank: int, what: Lost) -> Missing:
        failure = self._failure(rank, what)
        return Missing(rank, failure.worker, failure.node, failure.reason)

    def _failure(self, rank: int, what: Lost | Raised) -> RemoteFailure:
        member = self._members.get(rank)
        worker, node = (f"rank {rank}", member.node) if member else ("the gang", "")
        if isinstance(what, Raised):
            return RemoteFailure(what.reason, worker, node, rank, what.traceback)
        if member:
            fields = {"worker": worker, "node": node, "pid": member.pid, "reason": what.reason}
            self._notify("worker_lost", fields)
        return RemoteFailure(what.reason, worker, node, rank, lost=True)

    def _not_started(self, begun: set[int]) -> PlacementFailed:
        limit = f"within {self._start_timeout_s:g} s"
        if not self._members and self._ask("pending"):
            return bundles.busy(self._resources, self._num_ranks, self._strategy, self._start_timeout_s)
        missing = ", ".join(f"rank {rank}" for rank in range(self._num_ranks) if rank not in begun)
        return PlacementFailed(f"{missing} did not start {limit}")

    def _stalled(self) -> RemoteFailure:
        places: list[tuple[int, str]] = self._ask("silent")
        said = "; ".join(f"rank {rank} on {self._members[rank].node} {text}" for rank, text in places)
        return self._failure(places[0][0], Lost(f"no rank reported within {self._stall_timeout_s:g} s: {said}"))

    # --------------------------------------------------------------------------------------------- start and stop

    def _hub_class(self) -> type[Hub]:
        return Hub

    def _start_hub(self) -> Any:
        if self._hub is None:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            # Not soft: of an actor that asks for nothing Ray 2.60 then takes any node, whose end would be the gang's.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            hub = ray.remote(self._hub_class())
            self._hub = hub.options(num_cpus=0, max_restarts=0, scheduling_strategy=here).remote()
            self._hub.prepare.remote()
        return self._hub

    def _stop(self) -> None:
        """End the present run; the hub goes too when it cannot say that all is ended."""
        if self._hub is None:
            return
        import ray
        from ray.exceptions import RayError

        if not ray.is_initialized():
            return
        stopped = False
        try:
            stopped = ray.get(self._hub.stop.remote(self._number), timeout=HUB_TIMEOUT_S)
        except RayError:
            stopped = False  # it is gone, or does not answer: what it owns ends with it
        finally:
            if not stopped:
                self._stop_hub()

    def _stop_hub(self) -> None:
        import ray

        hub, self._hub = self._hub, None
        if hub is not None and ray.is_initialized():
            ray.kill(hub)
            ray.wait([hub.__ray_ready__.remote()], timeout=STOP_TIMEOUT_S)
            _release_made_by(hub._actor_id.hex())

    def close(self) -> None:
        """End every process of the gang."""
        try:
            self._stop()
        finally:
            self._stop_hub()

    def __enter__(self) -> Gang:
        bundles.count(self._resources, self._num_ranks, self._strategy)
        self._start_hub()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _release_made_by(actor_id: str) -> None:
    import ray

    if ray.util.client.ray.is_connected():  # only a process inside the cluster can look for them
        remote = ray.remote(num_cpus=0)(bundles.release_made_by)
        ray.get(remote.remote(actor_id), timeout=HUB_TIMEOUT_S)
    else:
        bundles.release_made_by(actor_id)


def _references(value: Any) -> Any:
    """Put references in the place of shared values, at the top and one level below."""
    if type(value) is dict:
        return {name: resolve(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(resolve(inner) for inner in value)
    return resolve(value)
