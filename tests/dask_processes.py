"""A scheduler and workers of Dask, each a process of its own, as users start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import toptune
from toptune.errors import StorageError
from toptune.params import Backbone, Picture, Windows

#: Of tests that extract with workers, and what they extract.
MARKS = [
    pytest.mark.usefixtures("one_torch_thread", "tiny_backbones"),
    # Of Dask's own: sockets of a scheduler that is gone.
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]

WINDOWS = Windows(width_s=2.0, stride_s=1.0)
TINY = Backbone(name="tiny", weights="random")
PICTURES = (Picture(), Picture(kind="raster"))
_PATHS = [str(Path(__file__).parent), str(Path(toptune.__file__).parents[1])]


class DaskProcesses:
    """Processes that end with the context in which they were made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []
        self.port = free_port()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def scheduler(self) -> subprocess.Popen[bytes]:
        words = ("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        return self._start("scheduler", *words)

    def worker(self, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker without a nanny, so that one that is killed stays away."""
        preload = ("--preload", "tiny_worker", "--no-nanny", "--no-dashboard", "--nthreads", "1")
        where = ("--local-directory", str(self.folder))
        return self._start("worker", self.address, *preload, *where, *words, **environment)

    def wait_for_workers(self, n: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False, timeout=60) as client:
            client.wait_for_workers(n, timeout=120)

    def _start(self, kind: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{kind}-{len(self.started)}.log").open("wb")
        with log:
            child = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words],
                stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_PATHS), **environment},
            )  # fmt: skip
        self.started.append(child)
        return child


def fail_once(cause: str, path: Path) -> int:
    """Fail in a way that may pass where a file is not there yet; gives the worker's process."""
    if not path.exists():
        path.write_text(cause)
        raise StorageError(cause)
    return os.getpid()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def dask_processes(folder: Path) -> Iterator[DaskProcesses]:
    processes = DaskProcesses(folder)
    try:
        yield processes
    finally:
        for child in processes.started:
            child.kill()
            child.wait()
