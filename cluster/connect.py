"""Connect this process to Ray, in one of four ways, and leave everything as it was afterwards.

    local        a cluster of this process's own, on 127.0.0.1 only, with a token made for it; ended on leaving
    auto         the cluster in RAY_ADDRESS, or the one that runs on this machine
    host:port    the cluster whose head is there; this machine must be one of its nodes
    ray://...    through Ray Client, from anywhere

Inside a Ray job `local` means the job's own cluster; a process that is connected already stays as it is. What Ray
changes in the environment and its SIGTERM handler are put back. Nothing here starts nodes: see `cluster.simulated`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster import inventory, probe
from cluster.errors import Unreachable
from cluster.executor import Notify

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job server for the driver of a submitted job
_LOCALHOST = ("127.0.0.1", "localhost", "::1")

DIRECT_BYTES = 512 << 10
"""Arguments and answers up to this size travel within the messages of a cluster of our own; Ray's default is 100 kB.
What is larger goes through the object store, which adds 3 ms to a call with 200 kB and its answer on two cores, and is
as fast from 1 MB on."""
_SYSTEM = {
    "max_direct_call_object_size": DIRECT_BYTES,
    "task_events_report_interval_ms": 0,  # they are for a dashboard, which a cluster of our own does not have
}


class Connection(NamedTuple):
    """What we are connected to.

    Args:
        address: the cluster's `host:port`, or `ray://...`.
        how: `started` a cluster of our own, `joined` one that was there, or `reused` this process's connection.
    """

    address: str
    how: str

    @property
    def direct_bytes(self) -> int:
        """Bytes that may travel within a message; 0 where the cluster is not ours, so that its limit is not known."""
        return DIRECT_BYTES if self.how == "started" else 0


def inside_job() -> bool:
    """Tell whether this process is the driver of a submitted Ray job."""
    return bool(os.environ.get(_JOB) and os.environ.get("RAY_ADDRESS"))


def _job_id() -> str:
    metadata = json.loads(os.environ[_JOB]).get("metadata") or {}
    return str(metadata.get("job_submission_id", ""))


@contextmanager
def connect(
    address: str = "local",
    *,
    min_cpus: float | None = None,
    temp_dir: str | None = None,
    log_to_driver: bool = True,
    runtime_env: Mapping[str, Any] | None = None,
    timeout_s: float = 10.0,
    notify: Notify | None = None,
) -> Iterator[Connection]:
    """Be connected to Ray inside the `with` block.

    Args:
        address: `local`, `auto`, `ray://host:port` or `host:port`.
        min_cpus: a local cluster offers at least so many CPUs, more than there are if need be.
        temp_dir: folder for a local cluster's sockets and logs; default Ray's own.
        log_to_driver: pass on what workers print.
        runtime_env: Ray's, for a cluster that is joined: `{"working_dir": "."}` sends this folder's code to its nodes.
        timeout_s: longest wait for an address to answer.
        notify: told `joined_job` when `local` turned into the cluster of the job we run in.

    Raises:
        Unreachable: no Ray at the address, another version of it, or a token is missing.
    """
    before = dict(os.environ)
    import ray

    if ray.is_initialized():
        yield Connection(_current_address(), "reused")
        return
    if address == "local" and inside_job():
        address = os.environ["RAY_ADDRESS"]
        if notify is not None:
            notify("joined_job", {"job": _job_id(), "address": address})
    own, handler = address == "local", _sigterm()
    set_by_us: dict[str, str | None] = {}
    probe.token_file(address)
    try:
        try:
            if own:
                _start(min_cpus, temp_dir, log_to_driver)
            else:
                address = _join(address, log_to_driver, runtime_env, timeout_s)
        finally:
            set_by_us = _changes(before, os.environ)
        if handler not in (None, signal.SIG_DFL):
            signal.signal(signal.SIGTERM, handler)  # a caller's own way to end comes before Ray's
        yield Connection(_current_address(), "started") if own else Connection(address, "joined")
    finally:
        if own:
            ray.shutdown(wait_for_processes=True)
        else:
            ray.shutdown()
        _restore(before, set_by_us)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        probe.read_token_again()


def _start(min_cpus: float | None, temp_dir: str | None, log_to_driver: bool) -> None:
    """Start a cluster that only this machine can reach, and on it only who knows the token."""
    import ray

    if "RAY_AUTH_MODE" not in os.environ:
        # Ray would write a token into the home folder for ever; ours lives as long as the cluster.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    probe.read_token_again()
    node = inventory.local(min_cpus)
    try:
        with loopback(inventory.LOOPBACK):
            ray.init(
                address="local",
                num_cpus=int(node.total["CPU"]),
                num_gpus=int(node.total.get("GPU", 0)),
                include_dashboard=False,
                log_to_driver=log_to_driver,
                logging_level="WARNING",
                _temp_dir=temp_dir,
                _system_config=dict(_SYSTEM),
            )
    except (OSError, RuntimeError, ValueError) as error:  # no space, no permission, a path too long for a socket
        raise Unreachable("local", f"Ray did not start on this machine: {error}") from error


def _join(address: str, log_to_driver: bool, runtime_env: Mapping[str, Any] | None, timeout_s: float) -> str:
    """Connect to a cluster that is there, once a probe has answered; return its address."""
    import ray
    from ray._private import services
    from ray.exceptions import AuthenticationError

    asked = address
    if address == "auto":
        address = found()
    probe.read_token_again()
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": "WARNING"}
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    try:
        if address.startswith("ray://"):
            probe.client_server(address, timeout_s)
            _join_by_client(address, options)
            return address
        if "://" in address:
            raise Unreachable(address, "an address is local, auto, ray://host:port or host:port")
        probe.gcs(address, timeout_s)
        if not services.find_node_ids():
            raise Unreachable(
                address,
                "no node of a cluster runs on this machine, so a driver cannot join from here; "
                "use ray://host:10001, or submit a job to http://host:8265",
            )
        with loopback(address):
            ray.init(address=address, **options)
    except AuthenticationError:
        raise Unreachable(asked, probe.TOKEN_REFUSED) from None
    except (ConnectionError, RuntimeError) as error:
        raise Unreachable(asked, (str(error).strip().splitlines() or [type(error).__name__])[-1]) from error
    return address


def _join_by_client(address: str, options: Mapping[str, Any]) -> None:
    """Connect by Ray Client, once more if need be: the process forked for a client at times dies at birth."""
    import ray

    try:
        ray.init(address=address, **options)
    except ConnectionAbortedError:
        ray.init(address=address, **options)


def found() -> str:
    """Return the address that `auto` stands for.

    Raises:
        Unreachable: when no Ray runs here and RAY_ADDRESS is not set.
    """
    from ray._private import services

    try:
        return str(services.get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise Unreachable("auto", "no Ray runs on this machine, and RAY_ADDRESS is not set") from None


@contextmanager
def loopback(address: str) -> Iterator[None]:
    """Let Ray take 127.0.0.1 literally inside the `with` block, when `address` names this machine so.

    Otherwise Ray replaces it by an address that other machines reach, on which a cluster of ours does not listen.
    Ray itself does this on laptops (macOS, Windows) through the same constant.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    if address.rpartition(":")[0].strip("[]") in _LOCALHOST or address in _LOCALHOST:
        ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _current_address() -> str:
    import ray

    if ray.util.client.ray.is_connected():
        return "ray://"
    return str(ray.get_runtime_context().gcs_address)


def _sigterm() -> Any:
    on_main_thread = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGTERM) if on_main_thread else None


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    names = before.keys() | after.keys()
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _restore(before: Mapping[str, str], set_by_us: Mapping[str, str | None]) -> None:
    """Undo our changes, except where somebody has changed the variable again since."""
    for name, value in set_by_us.items():
        if os.environ.get(name) == value:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)
