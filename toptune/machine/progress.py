"""The progress of long work, reported by recording and by stage."""

from __future__ import annotations

from typing import Protocol


class ProgressReporter(Protocol):
    """Shows the progress of work on recordings; every call may be ignored."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Note that recording `number` of `total` begins."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Note that in a stage of its work `done` of `total` samples or windows are done."""


class SilentReporter:
    """Shows nothing."""

    def recording(self, number: int, total: int, name: str) -> None:
        """Ignore."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Ignore."""
