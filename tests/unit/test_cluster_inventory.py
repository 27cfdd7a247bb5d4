"""Inventory without Ray: affinity, container limits and GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import inventory


def test_this_machine_has_what_the_operating_system_says() -> None:
    node = inventory.local()
    assert node.alive
    assert node.total == node.available
    assert node.total["CPU"] == inventory.num_cpus() >= 1
    assert node.total["memory"] > 2**28


def test_more_cpus_can_be_offered_than_there_are_and_never_fewer() -> None:
    assert inventory.local(min_cpus=10_000).total["CPU"] == 10_000
    assert inventory.local(min_cpus=0.5).total["CPU"] == inventory.num_cpus()


@pytest.mark.parametrize(
    "files, quota",
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "garbage"}, None),
    ],
)
def test_a_containers_cpu_limit_is_read_in_both_forms(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert inventory._cpu_quota(tmp_path) == quota


def test_only_what_workers_can_ask_for_is_listed() -> None:
    raw = {"CPU": 2, "memory": 5, "node:10.0.0.1": 1, "object_store_memory": 9, "CPU_group_0_ab": 1, "special": 3}
    assert inventory._placeable(raw) == {"CPU": 2.0, "memory": 5.0, "special": 3.0}
