"""What a worker does: say who it is, refuse what it cannot do alike, and call a function.

Functions and their arguments come by name and as bytes, which are read only when the worker turns
out to be of the same toptune as the caller: another one may know neither.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from toptune import errors
from toptune.errors import DeviceMemoryError, InputError, StorageError, ToptuneError
from toptune.machine.durable import writing
from toptune.machine.installation import code_digest, package_versions

T = TypeVar("T")

#: Clocks may differ by so much: signatures of cloud stores and certificates allow minutes.
CLOCK_S = 30.0


class RefusedWorkerError(InputError):
    """A worker must not work for this caller; no other of its tasks would end otherwise."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A process that works, by what its results depend on."""

    place: str  # host and process, for people
    version: str | None  # of toptune
    code: str  # digest of toptune's own files
    packages: tuple[tuple[str, str | None], ...]  # versions of what computes
    time_s: float  # its clock, since 1970

    def refusal_of(self, other: Identity) -> str | None:
        """Say why another process must not work for this one; None where it may."""
        if other.version != self.version:
            return (
                f"{other.place} has toptune {other.version}, and the caller {self.version}:"
                " install the same on both"
            )
        if other.code != self.code:
            return (
                f"{other.place} has toptune {other.version} as the caller, but of other files"
                f" ({other.code[:8]}, not {self.code[:8]}): install the same on both"
            )
        return None

    def packages_of(self, other: Identity) -> list[str]:
        """List the packages whose versions differ, with both."""
        mine = dict(self.packages)
        return [f"{n} {v} (caller: {mine.get(n)})" for n, v in other.packages if v != mine.get(n)]


def identity() -> Identity:
    """Say who this process is."""
    version, *others = _versions()
    return Identity(
        place=f"{platform.node()}, process {os.getpid()}",
        version=version[1],
        code=code_digest(),
        packages=tuple(others),
        time_s=time.time(),
    )


@cache
def _versions() -> list[tuple[str, str | None]]:
    """List the versions of toptune, which comes first, and of what computes."""
    found = package_versions()
    return [("toptune", found.pop("toptune")), *found.items()]


def clock_problem(place: str, ahead_s: float) -> str | None:
    """Say what is wrong with a clock that is ahead by so much, or behind; None where nothing is."""
    if abs(ahead_s) <= CLOCK_S:
        return None
    word = "ahead" if ahead_s > 0 else "behind"
    return f"the clock of {place} is {abs(ahead_s):.0f} s {word}: have both set by NTP"


def refuse_clock(folder: Path) -> None:
    """Compare the clock with that of the file system, which may be a server's.

    It is a `RefusedWorkerError` where they differ by more than `CLOCK_S`.
    """
    path = folder / f"clock-{os.getpid()}-{threading.get_ident()}"
    with writing(path):
        path.write_bytes(b"")
        there_s = path.stat().st_mtime
        path.unlink()
    problem = clock_problem(f"this machine, against {folder}", time.time() - there_s)
    if problem is not None:
        raise RefusedWorkerError(problem)


class Answer(NamedTuple):
    """What became of a task."""

    result: Any = None
    error: tuple[str, tuple[Any, ...]] | None = None  # class of `toptune.errors`, its arguments
    warnings: tuple[str, ...] = ()  # that were logged meanwhile
    refusal: str | None = None  # why this worker does nothing for the caller

    def value(self) -> Any:
        """Give the result, or raise the error."""
        if self.refusal is not None:
            raise RefusedWorkerError(self.refusal)
        if self.error is not None:
            name, arguments = self.error
            raise getattr(errors, name, ToptuneError)(*arguments)
        return self.result


# Of several tasks that Dask begins in a process only one computes at a time, with its threads.
_ONE = threading.Lock()


def work(caller: Identity, function: str, shared: bytes, own: bytes) -> Answer:
    """Call a function, ``module:name``, with an argument of all tasks and one of this.

    Errors of toptune are answers. Raised, so that Dask tries once more, is only what may be
    different the next time: a file system or a GPU without room, or a file that cannot be read.
    """
    refusal = caller.refusal_of(identity())
    if refusal is not None:
        return Answer(refusal=refusal)
    module, _, name = function.partition(":")
    with _ONE, _warnings() as warnings:
        try:
            call: Callable[[Any, Any], Any] = getattr(import_module(module), name)
            result = call(pickle.loads(shared), pickle.loads(own))
        except RefusedWorkerError as error:
            return Answer(refusal=f"{identity().place}: {error}")
        except ToptuneError as error:
            if _may_pass(error):
                raise
            several = getattr(error, "problems", None)
            arguments = (str(error),) if several is None else (list(several),)
            return Answer(error=(type(error).__name__, arguments), warnings=tuple(warnings))
    return Answer(result, warnings=tuple(warnings))


def _may_pass(error: ToptuneError) -> bool:
    cause = isinstance(error.__cause__, OSError)
    return cause or isinstance(error, StorageError | DeviceMemoryError)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what toptune warns of meanwhile, for the caller to tell."""
    told: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler, log = Keep(logging.WARNING), logging.getLogger("toptune")
    log.addHandler(handler)
    try:
        yield told
    finally:
        log.removeHandler(handler)


def dask_setup(_worker: object) -> None:
    """Leave Ctrl-C, which a terminal sends to all, to the caller; Dask calls it in a new worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- between tasks

_KEPT: dict[Hashable, Any] = {}
_KEPT_OF: list[str] = [""]


def kept(job: str, key: Hashable, make: Callable[[], T]) -> T:
    """Make something once for all tasks of a job in this process, such as a compiled network.

    What was kept for other jobs is let go.
    """
    if _KEPT_OF[0] != job:
        _KEPT.clear()
        _KEPT_OF[0] = job
    if key not in _KEPT:
        _KEPT[key] = make()
    made: T = _KEPT[key]
    return made


def threads_here() -> int:
    """How many threads this worker may use, as it was started."""
    from distributed import get_worker

    try:
        return int(get_worker().state.nthreads)
    except ValueError:  # not on a worker
        return 1
