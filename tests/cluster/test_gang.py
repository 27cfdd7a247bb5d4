"""Gangs of ranks report, are told, raise, die, stall and are interrupted; nothing of them is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from cluster import faults
from cluster.errors import PlacementFailed, RemoteFailure
from cluster.gang import Gang, RankReport

pytestmark = pytest.mark.ray

Told = list[tuple[str, dict[str, Any]]]
HERE = str(Path(__file__).parent)


@pytest.fixture
def gang(local_ray: str, told: Told) -> Iterator[Callable[..., Gang]]:
    """Make gangs that know the toy programs and tell what they do."""

    def make(num_ranks: int = 2, **settings: Any) -> Gang:
        settings = {"start_timeout_s": 90.0, "stall_timeout_s": 60.0, "paths": (HERE,), **settings}
        return Gang(num_ranks, {"CPU": 1}, notify=lambda kind, fields: told.append((kind, dict(fields))), **settings)

    yield make
    assert groups_left() == []
    assert gone(processes(told)) == []
    assert hubs_left() == []


def processes(told: Told) -> list[int]:
    return [fields["pid"] for kind, fields in told if kind == "worker_started"]


def gone(pids: list[int], timeout_s: float = 30.0) -> list[int]:
    """Return those of the processes that are still there after a while."""
    found = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [process.pid for process in psutil.wait_procs(found, timeout=timeout_s)[1]]


def groups_left() -> list[str]:
    from ray.util import placement_group_table

    return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]


def hubs_left(timeout_s: float = 30.0) -> list[str]:
    """Return the command lines of Ray's workers here that still are a hub or a rank."""

    def found() -> list[str]:
        lines = []
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                lines.append(" ".join(child.cmdline()))
        return [line for line in lines if line.startswith(("ray::Hub", "ray::RayTrain", "ray::Sync", "ray::Place"))]

    deadline = time.monotonic() + timeout_s
    while found() and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    return found()


def by_rank(reports: list[RankReport]) -> dict[int, list[Any]]:
    ranks = sorted({report.rank for report in reports})
    return {rank: [report.payload for report in reports if report.rank == rank] for rank in ranks}


def test_ranks_are_one_group_that_sees_shared_values_and_their_reports_arrive_all_and_in_order(
    gang: Callable[..., Gang], told: Told
) -> None:
    environment = dict(os.environ)
    with gang(3, threads=2) as one:
        handle = one.share(np.arange(500_000, dtype=np.float64))
        settings = {"num_reports": 40, "values": {"array": handle}}
        reports = by_rank(list(one.run("toy_gang:count_and_add", settings)))
    assert reports.keys() == {0, 1, 2}
    for rank, (*counted, seen) in reports.items():
        assert counted == [{"number": n, "rank": rank, "size": 3, "device": "cpu"} for n in range(40)]
        assert seen["sum"].tolist() == [6.0, 6.0, 6.0]
        assert seen["mean"] == 249_999.5
        assert not seen["writeable"], "a copy was made"
        assert not seen["owns"]
        assert seen["threads"] == 2
        assert seen["backend"] == "gloo"
    assert [kind for kind, _ in told] == ["placed"] + ["worker_started"] * 3
    assert {fields["worker"] for kind, fields in told if kind == "worker_started"} == {"rank 0", "rank 1", "rank 2"}
    assert dict(os.environ) == {**environment, "PYTEST_CURRENT_TEST": os.environ["PYTEST_CURRENT_TEST"]}


@pytest.mark.slow
def test_settings_and_payloads_arrive_as_they_were(gang: Callable[..., Gang], tmp_path: Path) -> None:
    (tmp_path / "users_own.py").write_text("ANSWER = 42\n")
    with gang(1, paths=(HERE, str(tmp_path), "/nowhere/at/all")) as one:
        names = ["OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"]
        (report,) = one.run("toy_gang:environment", {"names": names})
        assert report.payload["OMP_NUM_THREADS"] == "1"
        assert report.payload["GLOO_SOCKET_IFNAME"].startswith("lo")
        assert [report.payload for report in one.run("toy_gang:own_module", {"name": "users_own"})] == [42]
        shared = one.share({"a": 1})
        settings = {
            "none": None,
            "list": [shared, 2],
            "direct": shared,
            "bytes": pa.py_buffer(b"abc"),
            "pair": (1, 2.5),
        }
        (report,) = one.run("toy_gang:echo", settings)
    assert report.payload == {**settings, "list": [{"a": 1}, 2], "direct": {"a": 1}}


@pytest.mark.slow
def test_large_reports_wait_for_a_slow_reader(gang: Callable[..., Gang]) -> None:
    with gang(2) as one:
        numbers: dict[int, list[int]] = {0: [], 1: []}
        for rank, payload in one.run("toy_gang:large", {"num_bytes": 1_000_000, "times": 30}):
            assert payload["array"][-1] == payload["number"]
            assert len(payload["raw"]) == 1_000_000
            numbers[rank].append(payload["number"])
            if payload["number"] == 3:
                threading.Event().wait(0.3)
    assert numbers == {0: list(range(30)), 1: list(range(30))}


@pytest.mark.slow
def test_a_word_reaches_every_rank_and_is_forgotten_with_the_run(gang: Callable[..., Gang]) -> None:
    with gang(2) as one:
        heard = set()
        for rank, payload in one.run("toy_gang:until_word", {"word": "stop", "limit": 2000}):
            if payload == 5:
                one.tell("stop")
            if payload == "heard stop":
                heard.add(rank)
        assert heard == {0, 1}
        with pytest.raises(RemoteFailure, match="TimeoutError: stop"):
            list(one.run("toy_gang:until_word", {"word": "stop", "limit": 3}))


def test_the_rank_that_raised_is_named_not_its_neighbour_in_recv(gang: Callable[..., Gang], told: Told) -> None:
    with gang(2) as one:
        with pytest.raises(RemoteFailure) as caught:
            list(one.run("toy_gang:fail_on_one", {"text": "odd number of frogs"}))
        assert caught.value.reason == "ValueError: odd number of frogs"
        assert (caught.value.worker, caught.value.node, caught.value.call_index) == ("rank 1", "127.0.0.1", 1)
        assert not caught.value.lost
        assert "toy_gang.py" in caught.value.remote_traceback
        assert "raise ValueError(text)" in caught.value.remote_traceback
        assert gone(processes(told)) == []


@pytest.mark.slow
def test_a_rank_that_leaves_is_a_failure_and_the_next_run_works(gang: Callable[..., Gang]) -> None:
    with gang(2) as one:
        with pytest.raises(RemoteFailure, match="SystemExit: 3"):
            list(one.run("toy_gang:leave", {}))
        assert by_rank(list(one.run("toy_gang:count", {"num_reports": 1}))).keys() == {0, 1}


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_is_named_and_the_next_run_works(gang: Callable[..., Gang], told: Told, victim: int) -> None:
    with gang(2) as one:
        reports = one.run("toy_gang:wait_for_ever", {})
        pids = {report.rank: report.payload for report in (next(reports), next(reports))}
        faults.kill(pids[victim])
        with pytest.raises(RemoteFailure) as caught:
            next(reports)
        assert caught.value.lost
        assert (caught.value.worker, caught.value.node, caught.value.call_index) == (
            f"rank {victim}",
            "127.0.0.1",
            victim,
        )
        assert "killed" in caught.value.reason
        lost = [fields for kind, fields in told if kind == "worker_lost"]
        assert [(fields["worker"], fields["pid"]) for fields in lost] == [(f"rank {victim}", pids[victim])]
        assert gone(list(pids.values())) == []
        assert by_rank(list(one.run("toy_gang:count", {"num_reports": 1}))).keys() == {0, 1}


@pytest.mark.slow
def test_a_rank_that_kills_itself_after_a_barrier_is_the_cause(gang: Callable[..., Gang]) -> None:
    with gang(3) as one, pytest.raises(RemoteFailure) as caught:
        list(one.run("toy_gang:die_on_one", {}))
    assert caught.value.lost
    assert caught.value.worker == "rank 1"


@pytest.mark.slow
def test_a_hub_that_is_killed_takes_the_ranks_along(gang: Callable[..., Gang], told: Told) -> None:
    with gang(2) as one:
        reports = one.run("toy_gang:wait_for_ever", {})
        next(reports)
        hubs = [child for child in psutil.Process().children(recursive=True) if "ray::Hub" in child.name()]
        faults.kill(max(hubs, key=lambda child: child.create_time()).pid)
        with pytest.raises(RemoteFailure, match="the actor that passes reports on is gone: its process was killed"):
            list(reports)
        assert gone(processes(told)) == []
        assert groups_left() == []
        assert by_rank(list(one.run("toy_gang:count", {"num_reports": 1}))).keys() == {0, 1}


@pytest.mark.slow
def test_a_hub_that_is_lost_before_it_launches_is_started_again(
    gang: Callable[..., Gang], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    hubs, start = [], Gang._start_hub

    def lost_at_first(one: Gang) -> Any:
        hubs.append(start(one))
        if len(hubs) == 1:
            ray.kill(hubs[0])
        return hubs[-1]

    monkeypatch.setattr(Gang, "_start_hub", lost_at_first)
    with gang(2) as one:
        assert by_rank(list(one.run("toy_gang:count", {"num_reports": 1}))).keys() == {0, 1}
    assert len({hub._actor_id for hub in hubs}) == 2


@pytest.mark.slow
def test_the_caller_may_look_up_while_nothing_is_reported(gang: Callable[..., Gang]) -> None:
    with gang(2, stall_timeout_s=3.0) as one:
        heard = []
        with pytest.raises(RemoteFailure, match="no rank reported within 3 s"):
            for report in one.run("toy_gang:wait_for_ever", {}, beat_s=0.2):
                heard.append(report)
    assert sum(report is not None for report in heard) == 2
    assert heard[-5:] == [None] * 5


@pytest.mark.slow
def test_silence_names_where_every_rank_is_the_mute_ones_first(gang: Callable[..., Gang]) -> None:
    with gang(2, stall_timeout_s=1.0) as one:
        with pytest.raises(RemoteFailure) as caught:
            list(one.run("toy_gang:wait_for_ever", {}))
        assert caught.value.lost
        assert caught.value.reason.startswith(
            "no rank reported within 1 s: rank 0 on 127.0.0.1 in wait_for_ever, toy_gang"
        )
        assert "; rank 1 on 127.0.0.1 in wait_for_ever, toy_gang.py line" in caught.value.reason

        reports = one.run("toy_gang:wait_for_ever", {})
        pids = {report.rank: report.payload for report in (next(reports), next(reports))}
        with faults.frozen(pids[1]), pytest.raises(RemoteFailure) as caught:
            next(reports)
        assert caught.value.worker == "rank 1"
        assert "within 1 s: rank 1 on 127.0.0.1 does not answer; rank 0" in caught.value.reason


@pytest.mark.slow
def test_a_program_that_is_not_there_and_a_payload_that_cannot_travel_are_failures(gang: Callable[..., Gang]) -> None:
    with gang(2) as one:
        with pytest.raises(RemoteFailure, match="has no attribute 'nothing'"):
            list(one.run("toy_gang:nothing", {}))
        with pytest.raises(RemoteFailure, match="cannot pickle") as caught:
            list(one.run("toy_gang:report_a_lock", {}))
        assert "report_a_lock" in caught.value.remote_traceback


def test_what_cannot_be_placed_is_refused_at_once(local_ray: str) -> None:
    with pytest.raises(PlacementFailed) as caught, Gang(1000, {"CPU": 1}):
        pass
    assert caught.value.reason == "4 of 1000 workers fit on 1 node: short of 996 CPU"
    assert "996" in caught.value.table
    with pytest.raises(PlacementFailed, match="short of 1 GPU"):
        next(Gang(1, {"CPU": 1, "GPU": 1}).run("toy_gang:count", {"num_reports": 1}))
    with pytest.raises(ValueError, match="num_ranks is 0"):
        Gang(0, {"CPU": 1})


@pytest.mark.slow
def test_places_held_by_others_are_waited_for_and_then_given_up(gang: Callable[..., Gang]) -> None:
    with gang(3) as first, gang(2, start_timeout_s=5.0) as second:
        holding = first.run("toy_gang:wait_for_ever", {})
        next(holding)
        with pytest.raises(PlacementFailed, match="no place for 2 workers within 5 s: other work holds") as caught:
            next(second.run("toy_gang:count", {"num_reports": 1}))
        assert "available" in caught.value.table
        holding.close()
        assert by_rank(list(first.run("toy_gang:count", {"num_reports": 1}))).keys() == {0, 1, 2}


@pytest.mark.slow
def test_an_interrupt_while_waiting_leaves_nothing(gang: Callable[..., Gang], told: Told) -> None:
    with pytest.raises(KeyboardInterrupt), gang(2) as one:
        for _ in one.run("toy_gang:wait_for_ever", {}):
            if len(processes(told)) == 2:
                raise KeyboardInterrupt
    assert len(processes(told)) == 2
    assert gone(processes(told)) == []


@pytest.mark.slow
def test_an_interrupt_from_the_keyboard_inside_the_wait_leaves_nothing(gang: Callable[..., Gang], told: Told) -> None:
    with pytest.raises(KeyboardInterrupt), gang(2) as one:
        reports = one.run("toy_gang:wait_for_ever", {})
        next(reports), next(reports)
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), 2))
        timer.start()
        next(reports)
    assert len(processes(told)) == 2


@pytest.mark.slow
def test_an_interrupt_while_ranks_start_leaves_nothing(gang: Callable[..., Gang]) -> None:
    with pytest.raises(KeyboardInterrupt), gang(2) as one:
        timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), 2))
        timer.start()
        next(one.run("toy_gang:wait_for_ever", {}))


@pytest.mark.slow
def test_closing_early_stops_the_ranks_and_the_gang_goes_on(gang: Callable[..., Gang], told: Told) -> None:
    with gang(2) as one:
        reports = one.run("toy_gang:wait_for_ever", {})
        next(reports)
        with pytest.raises(RuntimeError, match="runs a program already"):
            next(one.run("toy_gang:count", {"num_reports": 1}))
        reports.close()
        assert gone(processes(told)) == []
        assert groups_left() == []
        assert by_rank(list(one.run("toy_gang:count", {"num_reports": 2}))).keys() == {0, 1}


@pytest.mark.slow
def test_nothing_is_printed_and_no_folder_is_left(gang: Callable[..., Gang], capfd: Any) -> None:
    import tempfile

    from ray._private.worker import _global_node

    def folders() -> set[Path]:
        places = (Path(tempfile.gettempdir()), Path(_global_node.get_session_dir_path()), Path.home())
        return {path for place in places for path in (*place.glob("gang-*"), *place.glob("ray_results"))}

    before = folders()
    with gang(2) as one:
        list(one.run("toy_gang:count", {"num_reports": 1}))
        with pytest.raises(RemoteFailure):
            list(one.run("toy_gang:fail_on_one", {"text": "quiet please"}))
    assert folders() <= before
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""
