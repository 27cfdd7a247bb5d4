"""What Ray's errors mean, from texts that Ray 2.60 gave when workers, nodes and memory were taken away."""

from __future__ import annotations

import pytest
from ray import exceptions as rays

from cluster.host import Raised
from cluster.losses import MEMORY, Lost, classify

KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n\tpid: 17124\n\tip: 127.0.0.1\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called"
)
NODE_DEAD = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: Host\n\tip: 127.0.0.1\nThe actor died "
    "because its node has died. Node Id: 5e59\n\tthe actor's node was terminated unexpectedly: health check failed "
    "due to missing too many heartbeats\nThe actor never ran - it was cancelled before it started running."
)


def died(text: str) -> rays.ActorDiedError:
    error = rays.ActorDiedError()
    error.error_msg = text
    return error


@pytest.mark.parametrize(
    "error, node, word",
    [
        (died(KILLED), False, "killed"),
        (died(NODE_DEAD), True, "node died"),
        (rays.ActorUnavailableError("RpcError: Socket closed rpc_code: 14", None), True, "cut off"),
        (rays.NodeDiedError("gone"), True, "node died"),
        (rays.ObjectLostError("ab" * 28, b"", ""), False, "ab" * 28),
        (died(""), False, "it died"),
    ],
)
def test_a_worker_that_is_gone_is_lost_and_its_call_may_run_elsewhere(error: Exception, node: bool, word: str) -> None:
    meaning = classify(error)
    assert isinstance(meaning, Lost)
    assert meaning.node is node
    assert word in meaning.reason
    assert "\n" not in meaning.reason


def test_running_out_of_memory_is_told_as_such() -> None:
    assert classify(rays.OutOfMemoryError("2 worker(s) were killed due to the node running low on memory")) == Lost(
        MEMORY
    )
    assert classify(died("The actor was killed by memory pressure")) == Lost(MEMORY)


def test_what_would_happen_again_is_a_failure() -> None:
    meaning = classify(
        rays.RayTaskError("call", "Traceback \x1b[36mhere\x1b[39m", ValueError("bad"), "p", 1, "127.0.0.1")
    )
    assert isinstance(meaning, Raised)
    assert meaning.reason == "ValueError: bad"
    assert "\x1b" not in meaning.traceback
    assert isinstance(classify(rays.TaskCancelledError()), Raised)


def test_an_actor_that_cannot_be_imported_points_to_the_installation() -> None:
    error = died("No module named 'cluster'")
    error._actor_init_failed = True
    meaning = classify(error)
    assert isinstance(meaning, Raised)
    assert "installed on every node" in meaning.reason
