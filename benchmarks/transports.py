"""What it takes to hand a boundary tensor to the next stage, in three ways, between the same two processes.

    gloo       `GroupTransport`, as stages use it: posted ahead, received into a buffer that is used again
    store      Ray's object store: the tensor as a numpy array in the arguments and in the result of an actor's method;
               the receiver maps it without copying (up to 100 KiB travel in the call itself)
    store *    the same, but the driver hands each result to the next call, a chain of calls submitted ahead
    direct     Ray's direct tensor transport with gloo, also a chain: the driver tells both ends to send and receive

The two processes are Ray actors of one thread in all cases. A tensor goes to and fro, as activations and their
gradients do; the seconds are those of one way. All ways alternate in segments. Nothing is computed meanwhile, so this
is latency and bandwidth, not what overlapping hides.

    python -m benchmarks.transports [--segments 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

from benchmarks.workloads import ONE_THREAD
from cluster.connect import connect
from trainers.pipeline.transport import GroupTransport, Key, Spec

TIMEOUT_S = 120.0
Ways = dict[str, Callable[[int], float]]


class End:
    """One of the two processes."""

    def __init__(self, rank: int, folder: str) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
        self.rank = rank
        self.transport = GroupTransport([0, 1], rank, torch.device("cpu"))

    def size(self, num_bytes: int) -> bool:
        """Make the tensor that this end sends."""
        self.tensor = torch.full((num_bytes // 4,), float(self.rank + 1))
        self.array = self.tensor.numpy()
        return True

    def gloo(self, times: int) -> float:
        """Send and receive by turns; return the seconds from the first message to the last."""
        specs, other, into = [Spec("0", tuple(self.tensor.shape), torch.float32)], 1 - self.rank, "FB"[1 - self.rank]
        dist.barrier()
        began = time.perf_counter()
        for number in range(times):
            arriving = Key(into, 1, number)
            self.transport.expect(arriving, specs, other)
            if self.rank == 0:
                self.transport.send(Key("F", 1, number), {"0": self.tensor}, other)
            got = self.transport.receive(arriving)
            assert got["0"][-1] == 2 - self.rank
            self.transport.give_back(list(got.values()))
            if self.rank == 1:
                self.transport.send(Key("B", 1, number), {"0": self.tensor}, other)
        self.transport.flush()
        return time.perf_counter() - began

    def store(self, other: Any, times: int) -> float:
        """Call the other end with this one's array; return the seconds from the first call to the last answer."""
        began = time.perf_counter()
        for _ in range(times):
            got = ray.get(other.answer.remote(self.array), timeout=TIMEOUT_S)
            assert torch.from_numpy(got)[-1] == 2 - self.rank
        return time.perf_counter() - began

    def answer(self, array: np.ndarray | None) -> np.ndarray:
        """Take the other end's array and return this one's."""
        assert array is None or torch.from_numpy(array)[-1] == 2 - self.rank
        return self.array

    @ray.method(tensor_transport="gloo")
    def direct(self, tensor: torch.Tensor | None) -> torch.Tensor:
        """Take the other end's tensor and return this one's, which stays here until it is asked for."""
        assert tensor is None or tensor[-1] == 2 - self.rank
        return self.tensor

    def take(self, got: Any) -> float:
        """Take what the other end returned last."""
        return float(got[-1])


def chain(ends: list[Any], method: str, times: int) -> float:
    """Hand results from end to end as often; return the seconds from the first call to the last result's arrival."""
    began = time.perf_counter()
    got = getattr(ends[0], method).remote(None)
    for number in range(1, 2 * times):
        got = getattr(ends[number % 2], method).remote(got)
    ray.get(ends[0].take.remote(got), timeout=TIMEOUT_S)
    return time.perf_counter() - began


def ways(ends: list[Any]) -> Ways:
    """Return the ways by name: how often to and fro -> seconds."""
    from ray.experimental.collective import create_collective_group

    create_collective_group(ends, "gloo", "boundaries")
    return {
        "gloo": lambda times: max(ray.get([end.gloo.remote(times) for end in ends], timeout=TIMEOUT_S)),
        "store": lambda times: float(ray.get(ends[0].store.remote(ends[1], times), timeout=TIMEOUT_S)),
        "store *": lambda times: chain(ends, "answer", times),
        "direct": lambda times: chain(ends, "direct", times),
    }


def measure(ends: list[Any], found: Ways, num_bytes: int, times: int, segments: int) -> None:
    """Print one size's table; what does not work is said, and left out."""
    ray.get([end.size.remote(num_bytes) for end in ends], timeout=TIMEOUT_S)
    seconds: dict[str, list[float]] = {}
    for name in list(found):
        try:
            found[name](2)
        except ray.exceptions.RayError as error:
            print(f"{name} does not work here: {str(error).strip().splitlines()[-1]}")
            del found[name]
    for segment in range(segments):
        for name in list(found) if segment % 2 == 0 else list(found)[::-1]:
            seconds.setdefault(name, []).append(found[name](times) / (2 * times))
    print(f"\n{num_bytes / 2**10:,.0f} KiB, {times} times to and fro, {segments} segments")
    print(f"  {'way':<10}{'ms one way':>12}{'MiB/s':>9}  times as long as gloo")
    for name, values in seconds.items():
        ratios = [one / other for one, other in zip(values, seconds["gloo"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        one_way = statistics.median(values)
        print(f"  {name:<10}{1000 * one_way:>12.3f}{num_bytes / 2**20 / one_way:>9,.0f}  {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--segments", type=int, default=5)
    parser.add_argument("--times", type=int, default=0, help="to and fro in a segment; default 64 MiB, 10 to 200 times")
    parser.add_argument("--kib", type=int, nargs="+", default=[64, 1024, 16 * 1024])
    arguments = parser.parse_args()
    folder = tempfile.TemporaryDirectory(prefix="boundary-")
    with folder as name, connect("local", min_cpus=2, log_to_driver=False):
        variables = {"env_vars": {**ONE_THREAD, "GLOO_SOCKET_IFNAME": "lo"}}
        kind = ray.remote(enable_tensor_transport=True)(End)
        ends = [kind.options(num_cpus=1, runtime_env=variables).remote(rank, name) for rank in range(2)]
        found = ways(ends)
        for kib in arguments.kib:
            times = arguments.times or min(200, max(10, 64 * 1024 // kib))
            measure(ends, found, kib * 1024, times, arguments.segments)


if __name__ == "__main__":
    main()
