"""Processes that die at any of their requests for objects below a URL."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from toptune.machine import objects

# How many requests lie between those at which a process dies; odd, so that it dies both before the
# server does it and after.
STEP = 1 if os.environ.get("TOPTUNE_KILLS") == "all" else 9


class Killed(BaseException):
    """What a process does not outlive."""


class Requests:
    """Counts requests, and lets a process die at one: before the server does it, or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        self.last: int | None = None
        real = objects._Root.retried

        async def retried(
            root: objects._Root, action: Callable[[Any], Awaitable[Any]], *more: Any
        ) -> Any:
            self.n += 1
            if self.last is not None and self.n >= self.last:
                if self.n == self.last and self.last % 2:
                    await real(root, action, *more)
                raise Killed
            return await real(root, action, *more)

        monkeypatch.setattr(objects._Root, "retried", retried)

    def dying(self, work: Callable[[], object], step: int = STEP) -> Iterator[None]:
        """Do something again and again, each time dying some requests later, until it ends."""
        for number in range(1, 10_000, step):
            self.n, self.last = 0, number
            try:
                work()
            except Killed:
                self.last = None
                yield
            else:
                self.last = None
                return
