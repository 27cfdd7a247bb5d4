"""The actors of a pool: starting, calling, replacing and stopping them, without deciding when.

A slot is a worker's place: its name and bundle stay, the actor in it may change. An actor takes its calls one after
the other, so each slot keeps a queue of references in the order given, and the head is what it works on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.bundles import Bundles
from cluster.executor import Notify, WorkerSpec
from cluster.host import Host
from cluster.losses import Outcome, outcome

BUILD, STALE = -1, -2
"""In a queue, in place of a call's index: the worker class being built; a call nobody waits for any more."""

FETCH_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0


@dataclass
class Slot:
    """One worker's place.

    Args:
        name: `worker 1`. bundle: index of its bundle. actor: Ray's handle of the actor there now.
        queue: references and indices of calls, the running one first.
        node, pid: where it runs, once it does. failures: actors lost here since the last answer.
    """

    name: str
    bundle: int
    actor: Any = None
    queue: deque[tuple[Any, int]] = field(default_factory=deque)
    node: str = ""
    pid: int = 0
    failures: int = 0


class Crew:
    """Actors in the bundles of a placement group, all of one class.

    Args:
        bundles: where they run. resources: what each takes. environment: variables set in each.
        spec: the class, handles in its arguments resolved to references.
        notify: told of workers that start, are lost and are replaced.
    """

    def __init__(
        self,
        bundles: Bundles,
        resources: Mapping[str, float],
        environment: Mapping[str, str],
        spec: WorkerSpec,
        notify: Notify,
    ) -> None:
        import ray

        self._group = bundles.group
        self._options = options(resources)
        self._environment = dict(environment)
        self._spec = spec
        self._notify = notify
        self._host = ray.remote(Host)
        self.slots = [Slot(f"worker {number}", index) for number, index in enumerate(bundles.indices)]
        for slot in self.slots:
            self._start(slot)

    def ready(self) -> list[Slot]:
        """List the workers that are built, those with the shortest queue first."""
        built = [slot for slot in self.slots if not (slot.queue and slot.queue[0][1] == BUILD)]
        return sorted(built, key=lambda slot: len(slot.queue))

    def starting(self) -> list[Slot]:
        """List the workers that are not built yet."""
        return [slot for slot in self.slots if slot.queue and slot.queue[0][1] == BUILD]

    def call(self, slot: Slot, index: int, method: str, args: Sequence[Any]) -> None:
        """Queue a call at a worker."""
        slot.queue.append((slot.actor.call.remote(method, *args), index))

    def wait(self, timeout_s: float) -> tuple[Slot, int, Outcome] | None:
        """Wait until some worker is through with the head of its queue; None when none is in time."""
        import ray

        heads = {slot.queue[0][0]: slot for slot in self.slots if slot.queue}
        ready, _ = ray.wait(list(heads), num_returns=1, timeout=timeout_s) if heads else ([], [])
        if not ready:
            return None
        slot = heads[ready[0]]
        ref, index = slot.queue.popleft()
        return slot, index, outcome(ref, FETCH_TIMEOUT_S)

    def built(self, slot: Slot, where: tuple[str, int]) -> None:
        """Note where a new worker runs."""
        replaced = bool(slot.pid)
        slot.node, slot.pid = where
        kind = "worker_replaced" if replaced else "worker_started"
        self._notify(kind, {"worker": slot.name, "node": slot.node, "pid": slot.pid})

    def replace(self, slot: Slot, reason: str, *, count: bool = True) -> None:
        """Start another actor in the place of one that is lost; its queue is dropped, its failure counted."""
        import ray

        slot.failures += count
        slot.queue.clear()
        ray.kill(slot.actor)
        self._notify("worker_lost", {"worker": slot.name, "node": slot.node, "pid": slot.pid, "reason": reason})
        self._start(slot)

    def abandon(self) -> None:
        """Let running and queued calls go on, and throw their answers away.

        Ray's `cancel` is no help: it cannot stop a running call, and a queued one taken out makes the actor wait
        30 s for the number that is missing. Queues are short.
        """
        for slot in self.slots:
            if slot.queue and slot.queue[0][1] != BUILD:
                slot.queue = deque((ref, STALE) for ref, _ in slot.queue)

    def stop(self) -> None:
        """Kill all actors and wait, a bounded time, until Ray has noted it."""
        import ray

        actors = [slot.actor for slot in self.slots]
        self.slots = []
        if ray.is_initialized():
            for actor in actors:
                ray.kill(actor)
            pings = [actor.ping.remote() for actor in actors]
            ray.wait(pings, num_returns=len(pings), timeout=STOP_TIMEOUT_S)

    def _start(self, slot: Slot) -> None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self._group,
            placement_group_bundle_index=slot.bundle,
            placement_group_capture_child_tasks=False,
        )
        slot.actor = self._host.options(**self._options, scheduling_strategy=strategy).remote(self._environment)
        names, values = tuple(self._spec.kwargs), tuple(self._spec.kwargs.values())
        ref = slot.actor.build.remote(self._spec.target, self._spec.sys_path, names, *values)
        slot.queue = deque([(ref, BUILD)])


def options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Turn a bundle into the options of an actor that takes all of it and is never restarted by Ray."""
    own = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options: dict[str, Any] = {own[name]: amount for name, amount in resources.items() if name in own}
    options.setdefault("num_cpus", 0)
    options["resources"] = {name: amount for name, amount in resources.items() if name not in own}
    return {**options, "max_restarts": 0, "max_task_retries": 0}
