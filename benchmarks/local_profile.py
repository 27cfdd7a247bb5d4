"""What the seconds of a batch went to, worker by worker, and what they could come to: the profile of `local_pipeline`.

    module      forward and backward of the worker's own layers, with the last one's loss
    auxiliary   forward and backward of its auxiliary network, with the loss
    optimizer   its steps
    sending     calls that hand messages over, and wait for earlier ones to be taken
    waiting     for a message, for the sum that ends a pipeline's step, and at a segment's end for the other worker
    rest        all else: examples read, gradients forgotten, Python

Clocks stand around the parts of the two runtimes; what an action of a schedule took is read from the pipeline's own
time line. The ideal of a pipeline is its schedule run on paper with those times (`strategies.pipeline.simulate`),
transfers free, and the slowest optimizer; that of local learning is the worker with the most work of its own.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from strategies.local.supervised import Supervised
from strategies.pipeline.actions import Orders
from strategies.pipeline.simulate import Costs, simulate
from trainers.decoupled.worker import Worker
from trainers.pipeline.collective import Pending
from trainers.pipeline.rank import Rank

OWN = ("module", "auxiliary", "optimizer")
PARTS = (*OWN, "sending", "waiting")


class Profile(NamedTuple):
    """A worker's seconds of a batch by what they went to, and the median seconds of each kind of action."""

    seconds: Mapping[str, float]
    actions: Mapping[str, float]

    @property
    def own_s(self) -> float:
        return sum(self.seconds[part] for part in OWN)


class Clocks:
    """Clocks around the parts of one side on one worker."""

    def __init__(self, side: Worker | Rank) -> None:
        self._seconds: Counter[str] = Counter()
        self._actions: defaultdict[str, list[float]] = defaultdict(list)
        self._began = 0.0
        self._side = side
        (self._around_worker if isinstance(side, Worker) else self._around_rank)(side)

    def clear(self) -> None:
        """Begin to count."""
        self._seconds.clear()
        self._actions.clear()

    def step_done(self) -> None:
        """Read the time line of the step that was done last."""
        if isinstance(self._side, Rank):
            for kind, _, _, _, ready_s, end_s in self._side.spans:
                self._actions[kind].append(end_s - ready_s)

    def waited(self, seconds: float) -> None:
        """Count seconds in which the other worker was waited for elsewhere: at a segment's end."""
        self._seconds["waiting"] += seconds

    def read(self, num_batches: int) -> Profile:
        """Return what was counted, for a batch."""
        medians = {kind: statistics.median(each) for kind, each in self._actions.items()}
        return Profile({part: self._seconds[part] / num_batches for part in PARTS}, medians)

    def _around(self, owner: Any, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def timed(*given: Any, **named: Any) -> Any:
            self._began = began = time.perf_counter()
            found = inner(*given, **named)
            self._seconds[part] += time.perf_counter() - began
            return found

        setattr(owner, method, timed)

    def _around_worker(self, worker: Worker) -> None:
        (module,), (optimizer,) = worker._modules, worker._optimizers
        assert isinstance(module, Supervised)
        self._around(module.units, "forward", "module")
        self._around(module, "learn", "module")
        self._around(optimizer, "step", "optimizer")
        self._around_transport(worker.link._transport)
        if module.auxiliary is not None:
            self._around(module.auxiliary, "forward", "auxiliary")
            module.units.register_forward_hook(self._split_backward)

    def _split_backward(self, units: nn.Module, given: Any, returned: Tensor) -> None:
        """Note when the gradient of what the units returned is there: until then it was the auxiliary network's."""

        def there(gradient: Tensor) -> None:
            passed = time.perf_counter() - self._began
            self._seconds["auxiliary"] += passed
            self._seconds["module"] -= passed

        returned.register_hook(there)

    def _around_rank(self, rank: Rank) -> None:
        (chunk,) = rank.chunks
        for method in ("forward", "backward", "weigh"):
            self._around(chunk, method, "module")
        self._around(rank.update, "apply", "optimizer")
        self._around_transport(rank._transport)
        begin = rank._collective.sum

        def sum_(group: str, tensor: Tensor) -> Pending:
            pending = begin(group, tensor)
            timed = _Result(pending)
            self._around(timed, "result", "waiting")
            return Pending(pending.ready, lambda: timed.result())

        rank._collective.sum = sum_  # type: ignore[method-assign]

    def _around_transport(self, transport: Any) -> None:
        self._around(transport, "receive", "waiting")
        self._around(transport, "send", "sending")
        self._around(transport, "flush", "sending")


class _Result:
    """A sum's result, where a clock can be set around it."""

    def __init__(self, pending: Pending) -> None:
        self.result = pending.result


def ideal_s(profiles: Sequence[Profile], actions: Orders | None) -> float:
    """Return the seconds of a batch if messages took no time.

    Args:
        profiles: of the two workers. actions: a pipeline's schedule; None for local learning.
    """
    if actions is None:
        return max(profile.own_s for profile in profiles)
    forward, backward = ([profile.actions[kind] for profile in profiles] for kind in "FB")
    weight = [profile.actions["W"] for profile in profiles if "W" in profile.actions]
    whole = simulate(actions, Costs(forward, backward, weight)).makespan_s
    return float(whole) + max(profile.seconds["optimizer"] for profile in profiles)


def show(
    measured_s: Mapping[str, float], profiles: Mapping[str, Sequence[Profile]], orders: Mapping[str, Orders]
) -> None:
    """Print the tables.

    Args:
        measured_s: of a batch, by side; local learning is `lossless`. profiles: of both workers, by side.
        orders: the actions of each pipeline.
    """
    print(f"  {'ms a batch':<14}{'worker':>8}" + "".join(f"{part:>11}" for part in (*PARTS, "rest", "whole")))
    for name, both in profiles.items():
        for worker, profile in enumerate(both):
            parts = [profile.seconds[part] for part in PARTS]
            row = [*parts, measured_s[name] - sum(parts), measured_s[name]]
            print(f"  {name:<14}{worker:>8}" + "".join(f"{1e3 * value:>11.1f}" for value in row))
    print(f"  {'side':<14}{'ms, ideal':>11}{'measured':>11}   throughput of lossless over it, ideal")
    best = ideal_s(profiles["lossless"], None)
    for name, both in profiles.items():
        ideal = ideal_s(both, orders.get(name))
        print(f"  {name:<14}{1e3 * ideal:>11.1f}{1e3 * measured_s[name]:>11.1f}   {ideal / best:.2f}")
