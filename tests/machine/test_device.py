"""How much memory is free, from made-up numbers of the operating system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toptune.heads.falkon.arrays import NUMPY
from toptune.machine import device
from toptune.machine.device import available_memory

GIB = 2**30


def write(root: Path, files: dict[str, str | int]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device, "_ROOT", tmp_path)
    meminfo = "MemTotal:  33554432 kB\nMemFree:  100 kB\nMemAvailable:   16777216 kB"
    write(tmp_path, {"proc/meminfo": meminfo})
    return tmp_path


def test_available_is_what_the_kernel_says(root: Path) -> None:
    assert available_memory() == 16 * GIB
    # A quarter of it may go to a kernel that is kept.
    assert NUMPY.kept_bytes() == 4 * GIB
    assert root.exists()


def test_a_control_group_leaves_its_limit_less_what_is_used(root: Path) -> None:
    group = "sys/fs/cgroup/user/job"
    write(
        root,
        {
            "proc/self/cgroup": "0::/user/job",
            f"{group}/memory.max": 8 * GIB,
            f"{group}/memory.current": 3 * GIB,
            f"{group}/memory.stat": f"anon 5\ninactive_file {GIB}",
            "sys/fs/cgroup/user/memory.max": "max",
            "sys/fs/cgroup/user/memory.current": 9 * GIB,
        },
    )
    # Cached files can be dropped, so they do not count as used.
    assert available_memory() == 6 * GIB
    # The group around it may have less left.
    write(root, {"sys/fs/cgroup/user/memory.max": 11 * GIB})
    assert available_memory() == 2 * GIB


def test_a_container_that_names_the_hosts_path_has_its_limit_at_the_top(root: Path) -> None:
    write(
        root,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/memory.usage_in_bytes": GIB // 2,
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0",
        },
    )
    assert available_memory() == 3 * GIB // 2


def test_elsewhere_half_of_what_is_installed_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_ROOT", tmp_path)
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    assert available_memory() == 4 * GIB

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert available_memory() == 4 * GIB
