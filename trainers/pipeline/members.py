"""What copies of one stage add up: gradients, and the statistics of batch normalisation.

Gradients leave in buckets while the batch's last backward still runs: a bucket goes when all of its gradients are
final, and buckets go in one order, from the model's end, so that all members begin the same sums. A gradient is taken
to be final when it has been added to as often as in the step before; the first step therefore sends all at its end.
Where one is added to later nevertheless, in a model that does other things from step to step, the last bucket, which
waits for the end, says so to all members, and the bucket is summed again. The numbers do not depend on any of this:
each is a sum over members, in the order of the members, whatever bucket it is in and whenever that left.

Source: Li et al. 2020, PyTorch Distributed (arXiv:2006.15704), section 3.2.3, for buckets in the order of backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from trainers.optimizers import aligned
from trainers.pipeline.batchnorm import combine
from trainers.pipeline.collective import Collective, Pending
from trainers.pipeline.part import Part

BUCKET_BYTES = 4 << 20


class Members:
    """One member's side of the sums of a stage.

    Args:
        member: of `size`. group: its name in `collective`.
    """

    def __init__(self, part: Part[Any], member: int, size: int, collective: Collective, group: str) -> None:
        self._part, self._member, self._size = part, member, size
        self._collective, self._group = collective, group
        trained = {id(parameter): parameter for parameter in part.trained} if size > 1 else {}
        found = [[p for p in chunk.modules.parameters() if id(p) in trained] for chunk in part.chunks]
        self._of_chunk = [list({id(p): p for p in parameters}) for parameters in found]
        order = {id(p): p for parameters in reversed(found) for p in reversed(parameters)} | trained
        self._wide = reduce(torch.promote_types, [p.dtype for p in order.values()], torch.uint8)
        self._buckets = list(_buckets(list(order.values())))
        self._bucket_of = {id(p): number for number, bucket in enumerate(self._buckets) for p in bucket}
        for parameter in order.values():
            parameter.register_post_accumulate_grad_hook(self._added)
        self._expected: Counter[int] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget a step that did not end."""
        self._counts: Counter[int] = Counter()
        self._missing = [len(bucket) for bucket in self._buckets]
        self._gone: list[Pending] = []
        self._late: set[int] = set()
        self._counting = False

    @property
    def num_gone(self) -> int:
        """Buckets that have left in this step."""
        return len(self._gone)

    @contextmanager
    def final(self, chunk: int) -> Iterator[None]:
        """Run the last action of a chunk that adds to its gradients in this step."""
        self._counting = True
        if self._expected is not None and self._part.chunks[chunk].splits_backward:
            for key in self._of_chunk[chunk]:  # what backward has done by itself is done
                if not self._expected[key]:
                    self._ready(key)
        try:
            yield
        finally:
            self._counting = False

    def finish(self) -> Iterator[None]:
        """Give each parameter the sum of its gradients, and commit the batch's statistics.

        Yields while it would wait for a rank of the same process.
        """
        while len(self._gone) < len(self._buckets):
            self._leave()
        norms = [norm for chunk in self._part.chunks for norm in chunk.norms]
        statistics = [norm.statistics() for norm in norms]
        if statistics and self._size > 1:
            statistics = yield from self._all_statistics(statistics)
        if self._buckets:
            yield from self._take()
        for norm, total in zip(norms, statistics, strict=True):
            norm.commit(total.to(norm.layer.running_mean.device))
        self._expected = self._counts
        self.begin()

    # --------------------------------------------------------------------------------------------------- inside

    def _added(self, parameter: Tensor) -> None:
        key = id(parameter)
        if self._bucket_of[key] < len(self._gone):
            self._late.add(self._bucket_of[key])
        if self._counting:
            self._counts[key] += 1
            if self._expected is not None and self._counts[key] == self._expected[key]:
                self._ready(key)

    def _ready(self, key: int) -> None:
        self._missing[self._bucket_of[key]] -= 1
        while len(self._gone) < len(self._buckets) - 1 and not self._missing[len(self._gone)]:
            self._leave()

    @torch.no_grad()
    def _leave(self) -> None:
        """Begin the sum of the next bucket."""
        number = len(self._gone)
        words = [before in self._late for before in range(number)] if number == len(self._buckets) - 1 else []
        self._gone.append(self._begun(self._buckets[number], words))

    def _begun(self, bucket: Sequence[nn.Parameter], words: Sequence[bool] = ()) -> Pending:
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        numbers = [p.grad.flatten().to(self._wide) for p in bucket if p.grad is not None]
        said = torch.tensor(list(words), dtype=self._wide, device=numbers[0].device)
        return self._collective.sum(self._group, torch.cat([*numbers, said]))

    def _take(self) -> Iterator[None]:
        *firsts, last = self._gone
        while not last.ready():
            yield None
        told = last.result()
        words = told[len(told) - len(firsts) :].tolist()
        with torch.no_grad():
            again = {number: self._begun(self._buckets[number]) for number, word in enumerate(words) if word}
        for number, pending in enumerate(firsts):
            meant = again.get(number, pending)
            while not meant.ready():
                yield None
            _give(self._buckets[number], meant.result())
        _give(self._buckets[-1], told)

    def _all_statistics(self, statistics: Sequence[Tensor]) -> Iterator[None]:
        rows = torch.zeros(self._size, sum(map(len, statistics)), dtype=torch.float64)
        rows[self._member] = torch.cat(list(statistics)).cpu()
        pending = self._collective.sum(self._group, rows)
        while not pending.ready():
            yield None
        columns = pending.result().split([len(one) for one in statistics], dim=1)
        return [combine(list(rows)) for rows in columns]  # type: ignore[return-value]  # the generator's return value


def _give(bucket: Sequence[nn.Parameter], sums: Tensor) -> None:
    sizes = [parameter.numel() for parameter in bucket]
    for parameter, gradient in zip(bucket, sums[: sum(sizes)].split(sizes), strict=True):
        parameter.grad = aligned(gradient.view_as(parameter).to(parameter.dtype), parameter)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parameters in order, each bucket as few as have BUCKET_BYTES together."""
    bucket: list[nn.Parameter] = []
    num_bytes = 0
    for parameter in parameters:
        bucket.append(parameter)
        num_bytes += parameter.numel() * parameter.element_size()
        if num_bytes >= BUCKET_BYTES:
            yield bucket
            bucket, num_bytes = [], 0
    if bucket:
        yield bucket
