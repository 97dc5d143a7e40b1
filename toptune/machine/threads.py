"""Threads over channels or chunks, one that writes, and compiled code, which lets others run.

Work goes to a pool that the caller owns; without a pool it is done at once. Results never depend on
the number of threads, because every item is computed by itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from toptune.machine import caches

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])

_LOG = logging.getLogger(__name__)
# What is being written when a user interrupts has so long to come to its end.
_GRACE_S = 3.0


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


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let linear algebra of NumPy and SciPy compute in one thread.

    On small matrices threads wait for each other longer than they compute, and all the longer where
    other programs want the processor, too.
    """
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    """Find the libraries of linear algebra that NumPy and SciPy have loaded."""
    # Loaded first, since either may come with a library of its own.
    for name in ("numpy.linalg", "scipy.linalg"):
        import_module(name)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on the CPU in one thread, for the same reason, if it is loaded."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Failed(NamedTuple):
    """A task that failed."""

    owner: str  # what it wrote for
    error: BaseException


class BackgroundWriter:
    """A thread that writes while the next recording is being processed.

    Tasks are done one after the other, so that a store has a single writer. At most `depth` are
    pending or running, so that little is held in memory. Leaving the context waits for all of them,
    even after an error; after an interrupt not long for what a server does not answer.
    """

    def __init__(self, depth: int = 1) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="toptune-writer")
        self._depth = depth
        self._pending: deque[tuple[str, Future[None]]] = deque()
        self._failed: list[Failed] = []

    def submit(self, owner: str, write: Callable[[], None]) -> None:
        """Add a task, once there is room for it; `owner` names it in its error."""
        while len(self._pending) >= self._depth:
            self._wait_for_first()
        self._pending.append((owner, self._pool.submit(write)))

    def wait(self) -> None:
        """Wait until all tasks are done or have failed."""
        while self._pending:
            self._wait_for_first()

    def take_failures(self) -> list[Failed]:
        """Return the failures of tasks that are done, each once."""
        while self._pending and self._pending[0][1].done():
            self._wait_for_first()
        taken, self._failed = self._failed, []
        return taken

    def _wait_for_first(self) -> None:
        owner, future = self._pending[0]
        error = future.exception()
        self._pending.popleft()
        if error is not None:
            self._failed.append(Failed(owner, error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            self._hurry()
        self._pool.shutdown(wait=True)
        # Not raised, since that would hide the error by which the context was left.
        for owner, failure in self.take_failures():
            if not isinstance(failure, KeyboardInterrupt):
                _LOG.error("%s failed: %s", owner, failure)

    def _hurry(self) -> None:
        """Wait for a moment, then end requests to servers."""
        objects = sys.modules.get("toptune.machine.objects")
        if objects is not None:
            left = wait([future for _, future in self._pending], timeout=_GRACE_S).not_done
            if left:
                objects.give_up()


def compiled(**options: Any) -> Callable[[Function], Function]:
    """Compile a function by `numba.njit` with `options`; it runs without the interpreter's lock.

    Numba keeps the machine code in ``NUMBA_CACHE_DIR``, beside the source, or in the user's cache
    folder where the installation is read-only. Where none of them can be written it is kept in the
    folder of `toptune.machine.caches`, and where there is none either, the function is compiled
    again in every process.
    """
    import numba

    def cached(function: Function) -> Function | None:
        try:
            made: Function = numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            return None
        return made

    def decorate(function: Function) -> Function:
        source = Path(function.__code__.co_filename)
        # Without a home, Numba would make a folder called "~" where the command runs.
        if caches.home() is None and not caches.is_usable(source.parent / "__pycache__"):
            caches.cache_in_private_folder()
        made = cached(function)
        if made is None and caches.cache_in_private_folder():
            made = cached(function)
        if made is None:
            made = numba.njit(nogil=True, **options)(function)
        return made

    return decorate
