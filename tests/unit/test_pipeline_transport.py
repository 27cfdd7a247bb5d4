"""Which process group a message goes through, and that every link is met in one order."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from strategies.pipeline import placement
from trainers.pipeline import transport
from trainers.pipeline.transport import WAYS, GroupTransport, Key, Spec, groups_of_ways

SPECS = [Spec("0", (2,), torch.float32)]


class Done:
    def wait(self) -> None:
        pass


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, Any]]:
    """What is asked of torch.distributed: send or receive, the other rank, the group."""
    made: list[tuple[str, int, Any]] = []

    def noted(name: str) -> Any:
        def call(tensor: torch.Tensor, other: int, group: Any = None, tag: int = 0) -> Done:
            made.append((name, other, group))
            return Done()

        return call

    monkeypatch.setattr(transport.dist, "isend", noted("send"))
    monkeypatch.setattr(transport.dist, "irecv", noted("receive"))
    monkeypatch.setattr(transport.dist, "new_group", lambda: f"group {len(made)}")
    return made


def exchange(rank: int, groups: dict[Any, Any]) -> GroupTransport:
    return GroupTransport([10, 11, 12], rank, torch.device("cpu"), groups)


def test_gloo_has_the_default_group_for_everything(calls: list[Any]) -> None:
    assert groups_of_ways("gloo") == {}
    middle = exchange(1, groups_of_ways("gloo"))
    middle.expect(Key("F", 1, 0), SPECS, 0)
    middle.send(Key("F", 2, 0), {"0": torch.zeros(2)}, 2)
    assert calls == [("receive", 10, None), ("send", 12, None)]


def test_nccl_has_a_group_for_each_kind_and_direction_and_both_ends_take_the_same(calls: list[Any]) -> None:
    assert set(groups_of_ways("nccl")) == set(WAYS) and len(WAYS) == 6
    groups = {way: way for way in WAYS}
    for kind, named in (("F", "F"), ("B", "B"), ("T", ""), ("U", ""), ("H", ""), ("L", ""), ("D", "")):
        for source, target in ((0, 1), (1, 0), (2, 0)):
            calls.clear()
            exchange(source, groups).send(Key(kind, 3, 0), {"0": torch.zeros(2)}, target)
            exchange(target, groups).expect(Key(kind, 3, 0), SPECS, source)
            way = (named, target > source)
            assert calls == [("send", 10 + target, way), ("receive", 10 + source, way)]


@pytest.mark.parametrize("name, chunks", [("1f1b", 1), ("interleaved", 2), ("zero-bubble-v", 2)])
def test_links_are_met_in_the_same_order_by_both_ends(calls: list[Any], name: str, chunks: int) -> None:
    placed = placement(name, 3, chunks)
    met: list[list[tuple[str, int, Any]]] = []
    for rank in range(3):
        calls.clear()
        side = exchange(rank, {way: way for way in WAYS})
        side.meet(placed)
        assert side.sent_bytes == 0
        met.append(list(calls))
    # blocking both ends of each: whoever is first on all ranks can always go on
    while any(met):
        ready = [
            (rank, other)
            for rank, row in enumerate(met)
            for what, other, way in row[:1]
            if what == "send" and met[other - 10][:1] == [("receive", 10 + rank, way)]
        ]
        assert ready, f"stuck: {met}"
        for rank, other in ready:
            del met[rank][0], met[other - 10][0]


def test_messages_between_chunks_of_one_rank_are_not_sent(calls: list[Any]) -> None:
    last = exchange(2, {})
    last.expect(Key("F", 3, 0), SPECS, 2)
    given = {"0": torch.ones(2)}
    last.send(Key("F", 3, 0), given, 2)
    assert last.receive(Key("F", 3, 0)) is given and calls == [] and last.sent_bytes == 0


def test_gradients_do_not_wait_for_activations_on_the_way_to_the_same_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    class Slow:
        def wait(self) -> None:
            waited.append("F")

    side = exchange(0, {})
    monkeypatch.setattr(transport.dist, "isend", lambda *given, **named: Slow())
    for microbatch in range(4):
        side.send(Key("F", 1, microbatch), {"0": torch.zeros(2)}, 1)
    side.send(Key("B", 4, 0), {"0": torch.zeros(2)}, 1)
    assert waited == []
    side.send(Key("F", 1, 4), {"0": torch.zeros(2)}, 1)
    assert waited == ["F"]
