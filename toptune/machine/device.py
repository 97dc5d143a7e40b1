"""The device that computes, which is never changed silently, and the memory it can still give."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from toptune.errors import InputError

if TYPE_CHECKING:
    import torch


def torch_device(device: str) -> str:
    """Resolve ``auto`` to ``cuda`` if torch finds a GPU, to ``cpu`` otherwise.

    Raises
    ------
    InputError
        The device is unknown, or it is ``cuda`` and torch finds no GPU.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {device!r}")
    found = _finds_gpu()
    if device == "cuda" and not found:
        raise InputError(
            "`device='cuda'`: torch finds no GPU, or is not installed; use `device='cpu'` or"
            " `device='auto'`"
        )
    return "cuda" if device != "cpu" and found else "cpu"


# Compute capabilities of the GPUs whose float64 runs at half the rate of float32, instead of a 32nd
# or less: P100, V100, A100, H100 and H200, B200 (CUDA C++ Programming Guide, throughput of native
# arithmetic instructions, 64-bit floating-point).
FULL_RATE_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})


def _finds_gpu() -> bool:
    """Whether torch, which all use of GPUs goes through, is installed and finds one."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def float64_device(device: str) -> str:
    """Resolve ``auto`` for float64: ``cuda`` only if the GPU computes it at half rate or more.

    On other GPUs float64 is usually slower than on the CPU. ``cuda`` takes any GPU. Errors are
    those of `torch_device`.
    """
    resolved = torch_device(device)
    if device == "auto" and resolved == "cuda":
        import torch

        if torch.cuda.get_device_capability() not in FULL_RATE_FLOAT64:
            return "cpu"
    return resolved


# Where the system does not say how much is free.
_SHARE_OF_INSTALLED = 0.5
_ASSUMED_BYTES = 4 * 2**30

_ROOT = Path("/")


def free_bytes(device: torch.device) -> int:
    """Bytes a torch device can still give, those that torch holds and does not use included."""
    if device.type != "cuda":
        return available_memory()
    import torch

    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held


def available_memory() -> int:
    """Bytes this process can still take without swapping.

    On Linux what the kernel calls available, or what is left of a control group's limit (versions
    1 and 2, this group and those around it) if that is less. Elsewhere half of what is installed,
    where the system says how much that is, and 4 GiB where it does not (Windows).
    """
    free = _linux_available(_ROOT)
    if free is None:
        return _half_of_installed()
    return min([free, *_control_group_room(_ROOT)])


def _half_of_installed() -> int:
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _ASSUMED_BYTES
    return int(_SHARE_OF_INSTALLED * installed)


def _linux_available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _control_group_room(root: Path) -> list[int]:
    """List what is left of each limit that holds for this process."""
    room = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's, and the limit at the top.
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                room += _room(folder, *names)
    return room


def _room(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Limit less usage, where there is a limit; cached files that can be dropped do not count."""
    most, used = _lines(folder / limit), _lines(folder / usage)
    if not most or not used or most[0] == "max":
        return []
    droppable = [
        int(value)
        for name, _, value in (line.partition(" ") for line in _lines(folder / "memory.stat"))
        if name == cache
    ]
    return [max(0, int(most[0]) - int(used[0]) + sum(droppable))]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
