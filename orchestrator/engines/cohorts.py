"""Training a step's participations on the workers: who gets which blocks, and the sum of what comes back."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from cluster.errors import RemoteFailure
from cluster.executor import Call, Executor
from orchestrator.errors import WorkerError
from strategies.base import Fold, Tree
from strategies.compression import Codec
from strategies.federated.folding import Summation, blocks, spans
from strategies.federated.stacking import Stack, Stacking
from strategies.seeds import integer
from trainers import wire
from trainers.cohort import ClientReport, SpanReport, Work
from trainers.cohort.messages import as_rows

SHORT_SPAN_S = 0.05
"""Spans shorter than this on average are one a worker: a call costs a millisecond or two, however little it does."""


class Outcome(NamedTuple):
    """What a step's participations came to.

    Args:
        gathered: the sum of the contributions, or all of them. reports: one a participation, by client.
        states: what is to be remembered of each client, encoded.
        compute_s, wire_s: of all workers together; the driver's share of the wire is in it.
        downlink_bytes: of one participation of each version.
    """

    gathered: Fold | Stack
    reports: tuple[ClientReport, ...]
    states: Mapping[int, pa.Buffer]
    compute_s: float
    wire_s: float


@dataclass
class Broadcasts:
    """Released models, encoded and shared with the workers once, by version.

    Args:
        codec: of broadcasts; None for the plain wire. seed: the run's.
    """

    executor: Executor
    codec: Codec | None
    seed: int
    _shared: dict[int, tuple[Any, int]] = field(default_factory=dict)

    def get(self, version: int, tree: Tree) -> tuple[Any, int]:
        """Return the handle of a version and the bytes of its payload, encoding `tree` the first time."""
        if version not in self._shared:
            if self.codec is None:
                payload = wire.encode(tree)
            else:
                payload = pa.py_buffer(self.codec.seeded(integer(self.seed, "downlink", version)).encode(tree))
            self._shared[version] = self.executor.share(payload), payload.size
        return self._shared[version]

    def num_bytes(self, version: int, tree: Tree) -> int:
        """Return the length of a version's payload."""
        return self.get(version, tree)[1]

    def keep(self, versions: set[int]) -> None:
        """Forget all other versions."""
        for version in self._shared.keys() - versions:
            self.executor.release(self._shared.pop(version)[0])


@dataclass
class Cohorts:
    """Runs participations on a pool of workers.

    Args:
        block_size: participations of a block; None for the default of `folding.blocks`. num_blocks: that default.
        stacked: contributions are wanted one by one, and not their sum.
    """

    executor: Executor
    block_size: int | None
    num_blocks: int
    stacked: bool = False
    _mean_s: float | None = None

    def train(self, works: Sequence[Work], broadcasts: Mapping[int, Any], place: str) -> Generator[None, None, Outcome]:
        """Train participations, sorted by client, from the broadcasts that they name; yield once workers have begun.

        Raises:
            WorkerError: when a client's code raises, an update is not finite, workers are lost for good, or nobody
                could train.
        """
        cut = blocks([work.client for work in works], self.block_size, self.num_blocks)
        even = self._mean_s is not None and self._mean_s < SHORT_SPAN_S
        divided = spans(len(cut), self.executor.num_workers, even=even)
        calls, groups = [], []
        for span in divided:
            group = [[works[place] for place in cut[index]] for index in span]
            versions = tuple(sorted({work.version for block in group for work in block}))
            calls.append(Call("train", (as_rows(group), versions, *(broadcasts[version] for version in versions))))
            groups.append([work.client for block in group for work in block])
        collected = Stacking() if self.stacked else Summation()
        waiting: dict[int, SpanReport] = {}
        reports: list[ClientReport] = []
        states: dict[int, pa.Buffer] = {}
        due, compute_s, wire_s = 0, 0.0, 0.0
        try:
            answers = self.executor.run(calls)
            yield
            for answer in answers:
                waiting[answer.index] = answer.value
                while due in waiting:
                    report = waiting.pop(due)
                    compute_s += report.compute_s
                    wire_s += report.wire_s - time.perf_counter()
                    reports.extend(map(ClientReport._make, report.clients))
                    states.update(report.states)
                    collected.push(report.answer.decode() if report.answer else None, len(divided[due]))
                    wire_s += time.perf_counter()
                    due += 1
        except RemoteFailure as failure:
            raise worker_error(failure, place, groups) from failure
        self._mean_s = compute_s / len(divided)
        gathered = collected.total()
        if gathered is None:
            first = reports[0]
            raise WorkerError(
                f"no client of the round could train: {first.failed}",
                place=f"{place}, client {first.client}",
                hint="see the client's data and code, or lower strategy.client.optimizer.lr",
            )
        return Outcome(gathered, tuple(reports), states, compute_s, wire_s)


def worker_error(failure: RemoteFailure, place: str, groups: Sequence[Sequence[int]] | None) -> WorkerError:
    """Say a remote failure in a user's words: which round, which clients, which worker, and what to do."""
    if groups is not None and 0 <= failure.call_index < len(groups):
        group = groups[failure.call_index]
        place += f", client {group[0]}" if len(group) == 1 else f", clients {group[0]} to {group[-1]}"
    if failure.lost:
        hint = "the run directory holds the last checkpoint: orchestrator resume RUN_DIR"
    elif "NotFinite" in failure.reason:
        hint = "lower strategy.client.optimizer.lr, set strategy.client.clip_norm=1, or strategy.on_failure=drop"
    else:
        hint = "mend the code above, or set strategy.on_failure=drop to go on without failing clients"
    return WorkerError(failure.reason, failure.worker, failure.node, place, failure.remote_traceback, hint)
