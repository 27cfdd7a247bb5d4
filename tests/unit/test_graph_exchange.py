"""How many messages the ways of a stage can tell apart: by place, chunk and sender, whatever there is most of."""

from __future__ import annotations

import pytest
import torch

from trainers.graph.exchange import NUM_MESSAGES, Exchange
from trainers.pipeline.transport import GroupTransport, Key


class Tags:
    """A transport that only numbers what it would send."""

    sent_bytes = 0

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send(self, key: Key, tensors: dict[str, torch.Tensor], target: int) -> None:
        self.sent.append(GroupTransport._tag(key, 0))


@pytest.mark.parametrize(("sites", "slots", "ways"), [(700, 5, 3), (1, 17_000, 2), (5, 2, 900)])
def test_many_aggregations_chunks_or_ways_have_messages_of_their_own(sites: int, slots: int, ways: int) -> None:
    transport, nothing = Tags(), torch.zeros(0)
    assert sites * (slots + 1) * ways <= NUM_MESSAGES
    way = ways - 1
    exchange = Exchange(transport, way, ways, slots)  # type: ignore[arg-type]
    give = [torch.ones(1) if other == 0 else None for other in range(ways)]
    for site in range(sites):
        for slot in range(slots + 1):
            exchange.swap("B", site, slot, give, [nothing] * ways)
    assert len(set(transport.sent)) == len(transport.sent) == sites * (slots + 1)
    assert max(transport.sent) < 2**31
