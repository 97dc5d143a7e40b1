"""How much memory there is, and what the Falkon head does about it.

What enters: what the operating system says. What leaves: bytes, and how many rows or centres go
with them. Everything is decided from numbers that are returned and can be logged.

The rules:

- All rows serve as centres up to `all_rows_limit`: as many as fit two float64 matrices of
  rows x rows into half of the memory at hand, and never more than 15,000. At 15,000 they take
  3.6 GB, and n^3 makes each further doubling of the rows eight times slower.
- On a GPU the memory at hand is the GPU's, and four such matrices must fit into half of it.
- Above it, 4,000 rows are drawn as Nystrom centres.
- The kernel of rows and centres is kept where it fits a quarter of the memory at hand, and
  evaluated again, block by block, where it does not.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import NamedTuple

# Above it, all rows as centres take too long: see above.
ALL_ROWS_CAP = 15_000
NYSTROM_CENTRES = 4_000
# Share of the memory at hand for the matrices of rows x rows, and for a kernel that is kept.
ALL_ROWS_SHARE = 0.5
KEPT_SHARE = 0.25
# Where the system does not say how much is free.
_SHARE_OF_INSTALLED = 0.5
_ASSUMED_BYTES = 4 * 2**30

# On a GPU nothing is factored in place: the kernel, a copy with the ridge, its factor, its inverse.
GPU_MATRICES = 4.0

_ROOT = Path("/")


class CentrePlan(NamedTuple):
    """How many centres the Falkon head takes for a number of rows, and why.

    Attributes
    ----------
    n_centres : int or None
        None: all rows.
    reason : str
        One line for the log.
    """

    n_centres: int | None
    reason: str


def plan_centres(
    n_rows: int, available_bytes: int | None = None, *, n_matrices: float = 2.0
) -> CentrePlan:
    """Decide between all rows and Nystrom centres, by the rules of this module.

    Parameters
    ----------
    n_rows : int
    available_bytes : int, optional
        Default: `available_memory`.
    n_matrices : float
        See `all_rows_limit`.
    """
    available = available_memory() if available_bytes is None else available_bytes
    limit = all_rows_limit(available, n_matrices=n_matrices)
    if n_rows <= limit:
        return CentrePlan(None, f"all {n_rows} windows are centres (up to {limit} may be)")
    n_centres = min(NYSTROM_CENTRES, n_rows)
    why = (
        f"more than {ALL_ROWS_CAP} take too long"
        if limit == ALL_ROWS_CAP
        else f"{available / 2**30:.1f} GiB of memory are at hand, enough for {limit} as centres"
    )
    return CentrePlan(n_centres, f"{n_centres} of {n_rows} windows are Nystrom centres: {why}")


def all_rows_limit(available_bytes: int, *, n_matrices: float = 2.0) -> int:
    """Count the rows up to which all of them can be centres.

    Parameters
    ----------
    available_bytes : int
    n_matrices : float
        How many float64 matrices of rows x rows there are at once. One fit or one set of folds
        has one, and with two or three groups half of another. On a GPU there are
        `GPU_MATRICES`.
    """
    fitting = math.isqrt(int(ALL_ROWS_SHARE * available_bytes / (8 * n_matrices)))
    return min(ALL_ROWS_CAP, fitting)


def kept_bytes() -> int:
    """Size up to which a kernel of rows and centres is kept in memory, right now."""
    return int(KEPT_SHARE * available_memory())


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
