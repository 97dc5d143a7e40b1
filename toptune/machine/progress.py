"""Who watches long work: told which recording is under way and how far, asked nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What watches work on recordings; every call may be ignored."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Note that recording `number` of `total` begins."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Note that inside it `done` of `total` samples or windows of a stage are through."""


class Silent:
    """Nobody watches."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Ignore."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore."""
