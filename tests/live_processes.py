"""Processes that write, and what a source gives of what they wrote."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from toptune.live.blocks import Block, Note, Source

WRITERS = Path(__file__).with_name("live_writers.py")
ROOT = Path(__file__).parents[1]


@contextmanager
def writing(*arguments: object, wait: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Run a writer; with `wait`, until it says that it has begun."""
    command = [sys.executable, str(WRITERS), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        if wait:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Reading:
    """A source read in a thread."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found: list[Block | Note] = []
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self.found += []
            for one in self.source.read():
                self.found.append(one)
        except BaseException as error:  # noqa: BLE001  # raised in the test
            self.error = error

    def until(self, true: Callable[[Reading], bool], seconds: float = 20.0) -> None:
        """Wait until something is found."""
        end_s = time.monotonic() + seconds
        while not true(self) and self._thread.is_alive():
            assert time.monotonic() < end_s, self.notes
            time.sleep(0.01)
        if self.error is not None:
            raise self.error
        assert true(self), self.notes

    def end(self, seconds: float = 20.0) -> None:
        """Wait until the source has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), self.notes
        if self.error is not None:
            raise self.error

    @property
    def blocks(self) -> list[Block]:
        return [one for one in list(self.found) if isinstance(one, Block)]

    @property
    def notes(self) -> list[Note]:
        return [one for one in list(self.found) if isinstance(one, Note)]

    @property
    def n(self) -> int:
        """Samples so far."""
        return sum(block.samples.shape[1] for block in self.blocks)

    def kinds(self) -> list[str]:
        return [note.kind for note in self.notes]

    def numbers(self) -> dict[int, int]:
        """The writer's number of the sample at each place; all channels must agree."""
        found: dict[int, int] = {}
        for block in self.blocks:
            own, rest = np.divmod(np.rint(block.samples).astype(int), 10)
            assert (rest == np.arange(len(rest))[:, None]).all()
            assert (own == own[0]).all()
            assert not found or block.first_sample > max(found)
            found |= dict(zip(range(block.first_sample, block.stop_sample), own[0], strict=True))
        return {place: int(number) for place, number in found.items()}
