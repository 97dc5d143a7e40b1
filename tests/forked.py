"""Processes forked from one that has imported everything, so that a start costs nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from toptune.cli.app import main
from toptune.machine import durable

# Changes of the file system, as the interpreter announces them.
STEPS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate"}


class Child(NamedTuple):
    """A forked process, and where its output can be read."""

    pid: int
    output: int


class Ended(NamedTuple):
    """How a process ended: its exit code or minus the signal, and what it printed."""

    code: int
    output: str


def fork(work: Callable[[], None]) -> Child:
    """Do something in a forked process; what it prints goes into a pipe, which is large enough."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, reading)
    code = 1
    try:
        os.setsid()  # so that `ended` reaches what it leaves behind
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  # printed, and the parent looks for it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_toptune(arguments: tuple[str, ...], prepare: Callable[[], None]) -> Child:
    """Start `toptune ARGUMENTS`."""

    def work() -> None:
        prepare()
        sys.argv = ["toptune", *arguments]
        main()

    return fork(work)


def ended(child: Child) -> Ended:
    """Wait for a process."""
    code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    # A library may have been starting a program, such as `ldconfig`, when the process was struck:
    # what is left behind would hold the pipe open for ever.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with os.fdopen(child.output) as pipe:
        return Ended(code, pipe.read())


def on_each_step(step: Callable[[], None]) -> None:
    """Call before each change of the file system, and on both sides of an exchange of names."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        if event in STEPS or (event == "open" and arguments[2] & writes):
            step()

    real = durable.exchange

    def exchange(a: Path, b: Path) -> bool:
        step()
        done = real(a, b)
        step()
        return done

    durable.exchange = exchange
    sys.addaudithook(hook)


def die_at_step(number: int) -> Callable[[], None]:
    """Make a process kill itself before its change `number` of the file system."""
    left = number

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: on_each_step(step)


def limit_files(n_bytes: int) -> Callable[[], None]:
    """Let writes beyond a length fail, which cuts files off in the middle of a write."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))

    return prepare


def nothing() -> None:
    """Prepare nothing."""
