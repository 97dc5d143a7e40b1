"""Threads over channels or chunks, and compiled code, during which other threads run too.

Work goes to a pool that the caller owns; without a pool it is done at once. Results never depend on
the number of threads, because every item is computed by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def thread_pool(n_jobs: int | None = None) -> Iterator[Executor | None]:
    """Provide a pool of `n_jobs` threads (None: one per usable core); None for a single thread."""
    n_jobs = usable_cores() if n_jobs is None else n_jobs
    if n_jobs == 1:
        yield None
        return
    with ThreadPoolExecutor(n_jobs, thread_name_prefix="toptune") as pool:
        yield pool


def in_threads(
    pool: Executor | None, work: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
    """Do `work` on every item and wait; results are in the order of the items."""
    if pool is None:
        return [work(item) for item in items]
    return list(pool.map(work, items))


def channel_slices(n: int, pool: Executor | None, multiple: int = 1) -> list[slice]:
    """Cut `n` channels into about one slice per thread, at multiples of `multiple`."""
    workers = getattr(pool, "_max_workers", 1)
    size = -(-n // workers)
    size = max(multiple, -(-size // multiple) * multiple)
    return [slice(a, min(a + size, n)) for a in range(0, n, size)]


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compile a function by `numba.njit` with `options`; it runs without the interpreter's lock.

    Numba keeps the machine code beside the source, or in the user's cache folder where the
    installation is read-only, or in ``NUMBA_CACHE_DIR``. Where none of them can be written, the
    function is compiled again in every process.
    """
    import numba

    def decorate(function: Function) -> Function:
        try:
            made: Function = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            made = numba.njit(nogil=True, **options)(function)
        return made

    return decorate
