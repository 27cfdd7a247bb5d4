"""The executor on Ray: one actor a bundle, calls handed out as workers become free, lost workers replaced.

    start     count, reserve bundles, start actors, build the worker class in each
    run       hand out calls in order, the first at once; a short queue at each worker hides the trips of short calls
    a loss    the worker's calls go back to the front, a new actor starts in its bundle, the others go on
    a raise   the remote traceback goes to the caller, and the pool remains usable
    close     kill the actors, give the bundles back

A worker handles its calls in the order given, so only the head of each queue is waited for. Answers are the same
whatever is lost, because calls are pure. The pool does not grow, and it never restarts a call that raised.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cluster import bundles as reservation
from cluster.crew import BUILD, STALE, Crew, Slot
from cluster.errors import PlacementFailed, RemoteFailure
from cluster.executor import Answer, Call, Notify, WorkerSpec
from cluster.host import Done, Raised
from cluster.losses import Lost, Outcome
from cluster.placement import Strategy

SHORT_CALL_S = 0.2
"""Calls shorter than this on average are queued two deep; longer ones wait here for whoever is free first."""


class Shared:
    """A handle to a value in the object store; small bytes are kept here and travel with each call."""

    __slots__ = ("ref",)

    def __init__(self, ref: Any) -> None:
        self.ref = ref


class RayExecutor:
    """A fixed pool of workers on the cluster this process is connected to.

    Args:
        num_workers: how many.
        resources: what each holds; default one CPU.
        strategy: `pack` on few nodes, or `spread`.
        threads: intra-op threads of each, set before its libraries are imported.
        start_timeout_s: longest wait for places, and for workers to be built.
        stall_timeout_s: longest wait for any worker to answer.
        notify: told `placed`, `worker_started`, `worker_lost` and `worker_replaced`.
        max_attempts: how many workers may be lost while they run the same call.
        direct_bytes: shared bytes up to this size travel within the calls, `Connection.direct_bytes`.
    """

    def __init__(
        self,
        num_workers: int,
        resources: Mapping[str, float] | None = None,
        strategy: Strategy = "pack",
        *,
        threads: int = 1,
        start_timeout_s: float = 120.0,
        stall_timeout_s: float = 1800.0,
        notify: Notify | None = None,
        max_attempts: int = 3,
        direct_bytes: int = 0,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}, expected at least 1")
        self._num_workers = num_workers
        self._resources = {name: float(amount) for name, amount in (resources or {"CPU": 1.0}).items()}
        self._strategy = strategy
        self._environment = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        self._start_timeout_s = start_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._notify = notify or (lambda kind, fields: None)
        self._max_attempts = max_attempts
        self._direct_bytes = direct_bytes
        self._bundles: reservation.Bundles | None = None
        self._crew: Crew | None = None
        self._running = False
        self._mean_s: float | None = None

    @property
    def num_workers(self) -> int:
        return self._num_workers

    def share(self, value: Any) -> Shared:
        import ray

        if isinstance(value, pa.Buffer) and value.size <= self._direct_bytes:
            return Shared(value)
        return Shared(ray.put(value))

    def release(self, handle: Any) -> None:
        handle.ref = None

    def start(self, spec: WorkerSpec) -> None:
        """Build the workers; called again, it builds them anew.

        Raises:
            PlacementFailed: when they cannot be placed or do not come up in time.
            RemoteFailure: when the class cannot be imported or raises, with `call_index` -1.
        """
        self._stop_crew()
        if self._bundles is None:
            self._bundles = reservation.reserve(
                self._resources, self._num_workers, self._strategy, self._start_timeout_s
            )
            self._notify("placed", {"workers": self._num_workers, "resources": self._resources})
        spec = spec._replace(kwargs={name: resolve(value) for name, value in spec.kwargs.items()})
        self._crew = crew = Crew(self._bundles, self._resources, self._environment, spec, self._notify)
        deadline = time.monotonic() + self._start_timeout_s
        while missing := crew.starting():
            left_s = deadline - time.monotonic()
            ready = crew.wait(left_s) if left_s > 0 else None
            if ready is None:
                names = ", ".join(slot.name for slot in missing)
                raise PlacementFailed(f"{names} did not start within {self._start_timeout_s:g} s")
            self._built(crew, *ready)

    def run(self, calls: Sequence[Call]) -> Iterator[Answer]:
        if self._crew is None:
            raise RuntimeError("start() comes before run()")
        if self._running:
            raise RuntimeError("the pool runs other calls already; finish or close that iteration first")
        answers = self._answers(self._crew, calls)
        next(answers)
        return answers  # type: ignore[return-value]  # only the first of them was None

    def _answers(self, crew: Crew, calls: Sequence[Call]) -> Iterator[Answer | None]:
        """Yield None when the first calls are handed out, then the answers."""
        self._running = True
        pending = deque(range(len(calls)))
        try:
            self._hand_out(crew, calls, pending)
            yield None
            yield from self._run(crew, calls, pending)
        finally:
            self._running = False
            if self._crew is not None:
                self._crew.abandon()

    def _run(self, crew: Crew, calls: Sequence[Call], pending: deque[int]) -> Iterator[Answer]:
        losses: dict[int, int] = {}
        num_open = len(calls)
        while num_open:
            self._hand_out(crew, calls, pending)
            slot, index, result = self._next(crew)
            if index == BUILD:
                self._built(crew, slot, index, result)
            elif isinstance(result, Lost):
                lost = [index, *(other for _, other in slot.queue)]
                pending.extendleft(other for other in reversed(lost) if other != STALE)
                if index != STALE:
                    losses[index] = losses.get(index, 0) + 1
                    if losses[index] >= self._max_attempts:
                        crew.replace(slot, result.reason)
                        reason = f"{losses[index]} workers were lost at this call; the last one: {result.reason}"
                        raise RemoteFailure(reason, slot.name, slot.node, index, lost=True)
                crew.replace(slot, result.reason)
            elif index != STALE:
                if isinstance(result, Raised):
                    raise RemoteFailure(result.reason, slot.name, slot.node, index, result.traceback)
                slot.failures = 0
                self._mean_s = result.seconds_s if self._mean_s is None else 0.8 * self._mean_s + 0.2 * result.seconds_s
                num_open -= 1
                yield Answer(index, result.value, slot.name, slot.node)

    def _hand_out(self, crew: Crew, calls: Sequence[Call], pending: deque[int]) -> None:
        """Give every free worker a call, and a second one where calls are short."""
        depth = 2 if self._mean_s is not None and self._mean_s < SHORT_CALL_S else 1
        for level in range(depth):
            for slot in crew.ready():
                if pending and len(slot.queue) == level:
                    index = pending.popleft()
                    crew.call(slot, index, calls[index].method, [resolve(value) for value in calls[index].args])

    def _next(self, crew: Crew) -> tuple[Slot, int, Outcome]:
        """Wait for the next thing to happen, or raise saying who is missing."""
        working = [slot for slot in crew.slots if slot.queue and slot.queue[0][1] != BUILD]
        timeout_s = self._stall_timeout_s if working else self._start_timeout_s
        ready = crew.wait(timeout_s)
        if ready is not None:
            return ready
        if not working:
            names = ", ".join(slot.name for slot in crew.slots)
            reason = f"all workers are lost, and none came back within {timeout_s:g} s: {names}"
            raise RemoteFailure(reason, names, "", -1, lost=True)
        names = ", ".join(f"{slot.name} on {slot.node}" for slot in working)
        first, index = working[0], working[0].queue[0][1]
        for slot in working:
            crew.replace(slot, f"no answer within {timeout_s:g} s")
        reason = f"no worker answered within {timeout_s:g} s; waited for {names}"
        raise RemoteFailure(reason, first.name, first.node, index, lost=True)

    def _built(self, crew: Crew, slot: Slot, index: int, result: Outcome) -> None:
        """Take in what building the worker class in a new actor came to."""
        if isinstance(result, Done):
            crew.built(slot, result.value)
        elif isinstance(result, Raised):
            raise RemoteFailure(result.reason, slot.name, slot.node, -1, result.traceback)
        elif result.node or slot.failures < self._max_attempts:
            crew.replace(slot, result.reason, count=not result.node)
        else:
            reason = f"lost {slot.failures} times in a row while it started; at last: {result.reason}"
            raise RemoteFailure(reason, slot.name, slot.node, -1, lost=True)

    def close(self) -> None:
        self._stop_crew()
        if self._bundles is not None:
            import ray

            if ray.is_initialized():
                reservation.release(self._bundles)
            self._bundles = None

    def _stop_crew(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.stop()

    def __enter__(self) -> RayExecutor:
        reservation.check(self._resources, self._num_workers, self._strategy)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def resolve(value: Any) -> Any:
    """Return a shared value's reference, and anything else as it is."""
    if not isinstance(value, Shared):
        return value
    if value.ref is None:
        raise ValueError("this shared value was released")
    return value.ref
