"""Writing in a thread of its own, beside the work on what comes next.

What enters: pieces of writing, each with the name of what it belongs to. What leaves: their errors,
each with that name. One thread, and at most one piece waiting or under way: so little is held in
memory, and a store has one writer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

_LOG = logging.getLogger(__name__)


class Failed(NamedTuple):
    """A piece of writing that failed.

    Attributes
    ----------
    owner : str
        What it belonged to.
    error : BaseException
        Why.
    """

    owner: str
    error: BaseException


class BackgroundWriter:
    """A thread that writes; leaving the context waits for it, however the context is left."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="toptune-writer")
        self._under_way: tuple[str, Future[None]] | None = None
        self._failed: list[Failed] = []

    def submit(self, owner: str, write: Callable[[], None]) -> None:
        """Begin a piece of writing, once the one before is through.

        Parameters
        ----------
        owner
            What it belongs to, for its error.
        write
            Writes.
        """
        self.wait()
        self._under_way = (owner, self._pool.submit(write))

    def wait(self) -> None:
        """Wait until everything is written, or has failed."""
        if self._under_way is None:
            return
        owner, future = self._under_way
        error = future.exception()
        self._under_way = None
        if error is not None:
            self._failed.append(Failed(owner, error))

    def take_failures(self) -> list[Failed]:
        """Give the errors of what is through, each once."""
        if self._under_way is not None and self._under_way[1].done():
            self.wait()
        taken, self._failed = self._failed, []
        return taken

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)
        for owner, failure in self.take_failures():  # an error on the way out hides no other
            _LOG.error("%s failed: %s", owner, failure)
