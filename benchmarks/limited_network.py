"""Two network namespaces joined by one link of limited bandwidth: what hosts a network apart have, on one machine.

Needs root on Linux, and `ip` and `tc` (iproute2). The limit is a token bucket on either end, so each direction has
the whole bandwidth, as a switched network gives.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

_NEW_NET = 0x40000000  # CLONE_NEWNET


@contextmanager
def two_hosts(megabits: int) -> Iterator[list[str]]:
    """Make two namespaces with a link of so many megabits a second each way; yield their names.

    Raises:
        RuntimeError: when this process may not, with what the system said.
    """
    hosts = [f"bench{os.getpid()}h{number}" for number in range(2)]
    try:
        for number, host in enumerate(hosts):
            _run("ip", "netns", "add", host)
            _run("ip", "-n", host, "link", "set", "lo", "up")
            if number:
                _run("ip", "link", "add", "link0", "netns", hosts[0], "type", "veth", "peer", "link0", "netns", host)
        for number, host in enumerate(hosts):
            _run("ip", "-n", host, "addr", "add", f"10.213.7.{number + 1}/24", "dev", "link0")
            _run("ip", "-n", host, "link", "set", "link0", "up")
            bucket = ("rate", f"{megabits}mbit", "burst", "256kb", "latency", "50ms")
            _run("ip", "netns", "exec", host, "tc", "qdisc", "add", "dev", "link0", "root", "tbf", *bucket)
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


def enter(host: str) -> None:
    """Move this process into a namespace, with gloo on its link."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/run/netns/{host}", os.O_RDONLY)
    try:
        if libc.setns(descriptor, _NEW_NET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {host}")
    finally:
        os.close(descriptor)
    os.environ["GLOO_SOCKET_IFNAME"] = "link0"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` said: {done.stderr.strip() or done.stdout.strip()}")
