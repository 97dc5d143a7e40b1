"""Who writes into a store, and who has which recording: by locks of files, or by objects.

Both kinds are beside the store, in ``.NAME.zarr.locks``. The system releases the lock of a file
when the process that holds it ends. An object cannot be locked. There a process puts one that says
that it writes, and renews it as long as it lives; a recording is claimed by an object that is made
only where there is none (a conditional put), and counts as long as the process it names is alive.
"""

from __future__ import annotations

import json
import os
import platform
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from toptune.errors import StorageError, ToptuneError
from toptune.machine.locks import held, is_held
from toptune.machine.remote import RemotePath

_SESSION, _STARTING = "session-", "starting-"

#: A process says so often that it is alive.
RENEW_S = 15.0
#: One that could not for so long publishes nothing more.
STOP_S = 120.0
#: One that has not for so long, by the server's clock, is taken for dead. What is between gives the
#: last request of one that stops time to end, with all its tries.
DEAD_S = 270.0
_POLL_S = 1.0
# After an error or an interrupt, which may be that the server is gone, so long is waited for it.
_PATIENCE_S = 3.0


class Claims(Protocol):
    """Who writes into a store, and who has which recording."""

    def beginning(self) -> AbstractContextManager[None]:
        """Keep all others from beginning or ending inside."""

    def living(self) -> list[tuple[str, str]]:
        """(token, listing) of all that write; what dead ones left of themselves is removed."""

    def enter(self, stack: ExitStack, token: str, listing: str) -> Callable[[], None]:
        """Write until a stack is closed; gives what raises an error where that must end before."""

    def joins(
        self, stack: ExitStack, host: str, token: str, listing: str
    ) -> Callable[[], None] | None:
        """`enter` for another that writes, `host`; None where that has ended."""

    def claim(self, name: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Claim a recording inside; False where another has it."""

    def tidy(self) -> None:
        """Remove claims where nobody writes."""


class FileClaims:
    """Claims by locks of files, beside a local store."""

    def __init__(self, store: Path) -> None:
        self.folder = locks_of(store)

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Hold the lock that all hold who begin or end."""
        with held(self.folder / "store.lock"):
            yield

    def living(self) -> list[tuple[str, str]]:
        """(token, listing) of all processes that are writing; what dead ones left is removed."""
        found = []
        for lock in sorted(self.folder.glob(f"{_SESSION}*.lock")):
            if is_held(lock):
                found.append(_token_and_listing(lock.stem))
            else:
                lock.unlink(missing_ok=True)
        return found

    def enter(self, stack: ExitStack, token: str, listing: str) -> Callable[[], None]:
        """Hold a lock of one's own until a stack is closed."""
        mine = self.folder / f"{_SESSION}{token}-{listing}.lock"
        stack.callback(mine.unlink, missing_ok=True)
        stack.enter_context(held(mine))
        return _nothing

    def joins(
        self, stack: ExitStack, host: str, token: str, listing: str
    ) -> Callable[[], None] | None:
        """Do the same if another process holds its own."""
        with self.beginning():
            if not is_held(self.folder / f"{_SESSION}{host}-{listing}.lock"):
                return None
            return self.enter(stack, token, listing)

    def claim(self, name: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Hold the lock of a recording."""
        return held(self.folder / f"recording-{name}.lock", wait=wait)

    def tidy(self) -> None:
        """Remove the files of locks that nobody can hold."""
        for lock in self.folder.glob("recording-*.lock"):
            lock.unlink(missing_ok=True)


class ObjectClaims:
    """Claims by objects, beside a store below a URL.

    A claim is ``NAME/NUMBER``. Who finds none of a living process makes the next number, if nobody
    else does, then looks again, and gives up where another living process has made one, too: of two
    that claim at a time, at least one sees the other.
    """

    def __init__(self, store: RemotePath) -> None:
        self._objects = locks_of(store).objects
        self._mine: Pulse | None = None

    @contextmanager
    def beginning(self) -> Iterator[None]:
        """Have the claim that all have who begin or end."""
        with (
            Pulse(self._objects, f"{_STARTING}{secrets.token_hex(4)}") as pulse,
            self._claimed("store", pulse, wait=True),
        ):
            self._mine = pulse
            yield

    def living(self) -> list[tuple[str, str]]:
        """(token, listing) of all processes that are writing; what dead ones left is removed."""
        assert self._mine is not None
        found = []
        for key in self._objects.list():
            if key.startswith((_SESSION, _STARTING)):
                if not self._is_alive(key, self._mine):
                    # At once, so that one that is killed here, too, has done a part of it.
                    self._objects.delete([key])
                elif key.startswith(_SESSION):
                    found.append(_token_and_listing(key))
        return found

    def enter(self, stack: ExitStack, token: str, listing: str) -> Callable[[], None]:
        """Say that this process writes, again and again until a stack is closed."""
        pulse = stack.enter_context(Pulse(self._objects, f"{_SESSION}{token}-{listing}"))
        self._mine = pulse
        return pulse.check

    def joins(
        self, stack: ExitStack, host: str, token: str, listing: str
    ) -> Callable[[], None] | None:
        """Do the same if another process still does."""
        # Said before it is asked: who begins when the host has ended sees this one.
        check = self.enter(stack, token, listing)
        assert self._mine is not None
        return check if self._is_alive(f"{_SESSION}{host}-{listing}", self._mine) else None

    @contextmanager
    def claim(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Claim a recording for the process that said that it writes."""
        assert self._mine is not None
        with self._claimed(f"recording-{name}", self._mine, wait=wait) as is_mine:
            yield is_mine

    def tidy(self) -> None:
        """Remove the claims on recordings, which are all of dead processes."""
        keys = self._objects.list()
        self._objects.delete(key for key in keys if key.startswith("recording-"))

    @contextmanager
    def _claimed(self, name: str, owner: Pulse, *, wait: bool) -> Iterator[bool]:
        key = self._claim(name, owner)
        while wait and key is None:
            time.sleep(_POLL_S * random.uniform(0.5, 1.5))
            owner.check()
            key = self._claim(name, owner)
        try:
            yield key is not None
        except BaseException:
            _let_go(self._objects, key)
            raise
        if key is not None:
            self._objects.delete([key])

    def _claim(self, name: str, owner: Pulse) -> str | None:
        """Make the next claim; None where a living process has one."""
        there = self._objects.list(name)
        if any(self._counts(key, owner) for key in there):
            return None
        number = 1 + max(map(_number_of, there), default=0)
        mine = f"{name}/{number:08}"
        # In it something random, by which an answer that was lost is known for one's own.
        if not self._objects.create(mine, f"{owner.key} {secrets.token_hex(8)}".encode()):
            return None
        now_there = [key for key in self._objects.list(name) if key != mine]
        if any(self._counts(key, owner) for key in now_there):
            self._objects.delete([mine])
            return None
        self._objects.delete(now_there)
        return mine

    def _counts(self, claim: str, asking: Pulse) -> bool:
        """Whether a claim is a living process's."""
        data = self._objects.get(claim)
        owner = b"" if data is None else data.partition(b" ")[0]
        return bool(owner) and self._is_alive(owner.decode("utf-8", "replace"), asking)

    def _is_alive(self, key: str, asking: Pulse) -> bool:
        if key == asking.key:
            return True
        said = self._objects.get(key)
        if said is None or _is_gone(said):
            return False
        renewed_s = self._objects.modified(key)
        return renewed_s is not None and asking.server_s() - renewed_s < DEAD_S


class Pulse:
    """An object that says that this process is alive, renewed by a thread inside the context."""

    def __init__(self, objects: Any, key: str) -> None:
        self.key = key
        self._objects = objects
        self._ended = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name="toptune-pulse", daemon=True)
        self._renewed_s = _seconds()
        # The server's time of the last renewal that was asked for, and when that was.
        self._server: tuple[float, float] | None = None

    def __enter__(self) -> Pulse:
        self._put()
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ended.set()
        if kind is not None:
            _let_go(self._objects, self.key)
            return
        self._thread.join(5.0)
        self._objects.delete([self.key])

    def _put(self) -> None:
        began_s = _seconds()
        self._objects.put(self.key, _about_this_process())
        self._is_lost |= began_s - self._renewed_s > STOP_S
        self._renewed_s, self._server = began_s, None

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S) and not self._is_lost:
            # `check` says that it was not renewed; after an interrupt nothing is.
            with suppress(ToptuneError, KeyboardInterrupt):
                self._put()
                if self._ended.is_set():  # and deleted, maybe before this arrived
                    self._objects.delete([self.key])

    def check(self) -> None:
        """Raise a StorageError where others may take this process for dead."""
        self._is_lost |= _seconds() - self._renewed_s > STOP_S
        if self._is_lost:
            raise StorageError(
                f"{self._objects.url}: this process could not say for {STOP_S:.0f} s that it is"
                " alive, so others may go on with its work: run the same command again; what was"
                " published is kept"
            )

    def server_s(self) -> float:
        """Give the server's time, in seconds since 1970; it is late by what a request takes."""
        if self._server is None:
            here_s = _seconds()
            there_s = self._objects.modified(self.key)
            if there_s is None:
                self._is_lost = True
                self.check()
            assert there_s is not None
            self._server = there_s, here_s
        there_s, here_s = self._server
        return there_s + _seconds() - here_s


def _let_go(objects: Any, key: str | None) -> None:
    """Delete an object after an error, unless that takes long: it counts for nothing soon."""

    def delete() -> None:
        with suppress(BaseException):  # the error before it counts
            objects.delete([key])

    if key is not None:
        thread = threading.Thread(target=delete, name="toptune-pulse", daemon=True)
        thread.start()
        thread.join(_PATIENCE_S)


def locks_of(store: Path) -> Any:
    """Give the folder of a store's claims; the store's path is without links."""
    return store.with_name(f".{store.name}.locks")


def claims_of(store: Path) -> Claims:
    """Give the claims on a store; its path is without links."""
    return ObjectClaims(store) if isinstance(store, RemotePath) else FileClaims(store)


def _token_and_listing(name: str) -> tuple[str, str]:
    token, _, listing = name.removeprefix(_SESSION).partition("-")
    return token, listing


def _number_of(claim: str) -> int:
    number = claim.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def _nothing() -> None: ...


def _seconds() -> float:
    """Give a clock that goes on while a machine sleeps, where there is one."""
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):  # of Linux, of macOS
        if hasattr(time, name):
            return time.clock_gettime(getattr(time, name))
    return time.monotonic()


# --- processes of this machine, which need not be waited for until they seem dead


def _about_this_process() -> bytes:
    return json.dumps({"host": platform.node(), "process": _named(os.getpid())}).encode()


def _is_gone(said: bytes) -> bool:
    """Whether a process of this machine, by what it said of itself, has ended."""
    try:
        named = json.loads(said)["process"]
        pid, where, _ = named
    except (ValueError, KeyError, TypeError):
        return False
    if where is None or where != _machine():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        return False
    now = _named(pid)
    return now is not None and now != named


def _named(pid: int) -> list[Any] | None:
    """Name a process so that no other has ever the same name; None where that cannot be."""
    with suppress(OSError, IndexError):
        # Its own name, in brackets, may hold spaces. The 3rd field is what it does, and the 22nd
        # when it began.
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        fields = stat.rpartition(")")[2].split()
        has_ended = fields[0] in "ZX"  # but nobody has asked yet how
        return [pid, _machine(), "" if has_ended else fields[19]]
    return None


def _machine() -> str | None:
    """Name this machine as long as it is not started anew, and where processes have numbers."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return None
