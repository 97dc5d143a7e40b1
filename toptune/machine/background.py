"""Writing in a background thread, while the next recording is being processed.

There is one thread, and at most one task pending or running, so that little is held in memory and a
store has a single writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self

_LOG = logging.getLogger(__name__)


class Failed(NamedTuple):
    """A task that failed."""

    owner: str  # what it wrote for
    error: BaseException


class BackgroundWriter:
    """A thread that writes; leaving the context waits for it, even after an error."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="toptune-writer")
        self._running: tuple[str, Future[None]] | None = None
        self._failed: list[Failed] = []

    def submit(self, owner: str, write: Callable[[], None]) -> None:
        """Start a task, once the previous one is done; `owner` names it in its error."""
        self.wait()
        self._running = (owner, self._pool.submit(write))

    def wait(self) -> None:
        """Wait until all tasks are done or have failed."""
        if self._running is None:
            return
        owner, future = self._running
        error = future.exception()
        self._running = None
        if error is not None:
            self._failed.append(Failed(owner, error))

    def take_failures(self) -> list[Failed]:
        """Return the failures of tasks that are done, each once."""
        if self._running is not None and self._running[1].done():
            self.wait()
        taken, self._failed = self._failed, []
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)
        # Not raised, since that would hide the error by which the context was left.
        for owner, failure in self.take_failures():
            _LOG.error("%s failed: %s", owner, failure)
