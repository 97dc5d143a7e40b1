"""Writing into one store by several processes at a time.

All processes that write at a time list the same recordings, and each recording is written by one of
them. Readers need no lock. A process may let others join, on any machine that sees the same files:
they write for it, and need not know the list.

The lock files are beside the store, in ``.NAME.zarr.locks``: ``store.lock`` is held while a process
begins or ends; each process holds a file of its own as long as it works, and one for each recording
that it works on.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from toptune.errors import InputError
from toptune.features.table import RecordingInfo
from toptune.machine.durable import writing
from toptune.machine.locks import held, is_held
from toptune.params import HighPass, Ptsd, content_key, options_of
from toptune.store.feature_store import FeatureStore
from toptune.store.places import ASIDE

_SESSION = "session-"


class Ticket(NamedTuple):
    """A session that others may join."""

    store: Path
    token: str  # who lets them join
    listing: str  # digest of the recordings that are listed


class StoreSession:
    """One process's part in writing a store whose recordings are listed."""

    def __init__(self, store: FeatureStore, locks: Path, ticket: Ticket) -> None:
        self.store = store
        self._locks = locks
        self._ticket = ticket

    @property
    def ticket(self) -> Ticket:
        """With which other processes join, as long as this session lasts."""
        return self._ticket

    def claim(self, name: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Claim a recording, by its name in the store, for a while.

        False is given where another process has it; with `wait` it is waited for.
        """
        return held(self._locks / f"recording-{name}.lock", wait=wait)


@contextmanager
def writing_session(
    path: Path,
    settings: dict[str, Any],
    listed: tuple[RecordingInfo, ...],
    *,
    devices_file: Path | None = None,
    anew: bool = False,
) -> Iterator[StoreSession]:
    """Open a store for writing, beside other processes that list the same recordings.

    What processes that were killed left unpublished is removed. The settings are those of
    detection, JSON-able; the path of the devices file is recorded for reports. `anew` puts an empty
    store in the place of one that is there.

    Raises
    ------
    InputError
        Another process is writing and lists other recordings, or the store is to be made anew
        under it; the store's spikes were found with other settings; the file system has no locks.
    StorageError
        The store cannot be written.
    """
    real, locks = _locks_of(path)
    listing = content_key([(r.name, r.device, r.label, r.columns) for r in listed])
    token = _new_token()
    mine = _lock_of(locks, token, listing)
    with ExitStack() as held_while_writing:
        with held(locks / "store.lock"):
            others = _others(locks)
            _refuse_others(path, others, listing, anew=anew)
            # Under the lock that all who look for living writers hold, so that none is overlooked.
            held_while_writing.callback(mine.unlink, missing_ok=True)
            held_while_writing.enter_context(held(mine))
            _remove_leftovers(real, {token for token, _ in others})
            store = _open(path, settings, anew=anew)
            store.writer = token
            store.list_recordings(listed, devices_file)
        yield StoreSession(store, locks, Ticket(real, token, listing))
    _tidy(real, locks)


@contextmanager
def joined_session(ticket: Ticket, store: FeatureStore | None = None) -> Iterator[StoreSession]:
    """Write for another process, into the store that it has open for writing.

    `store` is that store where this process has opened it before.

    Raises
    ------
    InputError
        The other process has ended; the store is not there, on this machine.
    StorageError
        The store cannot be written.
    """
    real, locks = _locks_of(ticket.store)
    if not locks.is_dir():
        raise InputError(
            f"{ticket.store}: not to be seen on {platform.node()}: give a path on a file system"
            " that all workers share, under the same name"
        )
    token = _new_token()
    mine = _lock_of(locks, token, ticket.listing)
    with ExitStack() as held_while_writing:
        with held(locks / "store.lock"):
            if not is_held(_lock_of(locks, ticket.token, ticket.listing)):
                raise InputError(
                    f"{ticket.store}: the process that this one writes for has ended, or"
                    f" {platform.node()} does not see its locks: have the file system mounted with"
                    " locks"
                )
            held_while_writing.callback(mine.unlink, missing_ok=True)
            held_while_writing.enter_context(held(mine))
        opened = FeatureStore(real) if store is None else store
        opened.writer = token
        yield StoreSession(opened, locks, Ticket(real, token, ticket.listing))


def _locks_of(path: Path) -> tuple[Path, Path]:
    """Give a store's path without links, and the folder of its locks."""
    real = path.resolve()
    return real, real.with_name(f".{real.name}.locks")


def _lock_of(locks: Path, token: str, listing: str) -> Path:
    return locks / f"{_SESSION}{token}-{listing}.lock"


def _new_token() -> str:
    return f"s{secrets.token_hex(4)}"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep all others from beginning to write into a store for a while.

    It is an InputError if a process is writing into it.
    """
    _, locks = _locks_of(path)
    with held(locks / "store.lock"):
        if _others(locks):
            raise InputError(
                f"{path}: another process is extracting into it: wait until it is done"
            )
        yield


def refuse_other_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse a store whose spikes were found otherwise, by the first setting that differs."""
    here, wanted = _flat(FeatureStore(path).settings), _flat(settings)
    for name in sorted({*here, *wanted}):
        if (value := here.get(name)) != wanted.get(name):
            called = _OPTIONS.get(name, name)
            same = f"leave out `{called}`" if value is None else f"give `{called}={value}`"
            raise InputError(
                f"{path}: its spikes were found with {name} = {value!r}, not"
                f" {wanted.get(name)!r}: {same} to go on with it, or use another store"
            )


# The options' names, by the names of the settings that a store holds.
_OPTIONS = {
    f"{part}.{one.field}": one.name
    for part, cls in (("highpass", HighPass), ("ptsd", Ptsd))
    for one in options_of(cls)
}


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{'ptsd': {'threshold_sd': 8}} becomes {'ptsd.threshold_sd': 8}."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            flat[name] = value
    return flat


def _open(path: Path, settings: dict[str, Any], *, anew: bool) -> FeatureStore:
    if anew or not path.exists():
        FeatureStore.create(path.resolve(), settings, replace=True)
        return FeatureStore(path)
    refuse_other_settings(path, settings)
    return FeatureStore(path)


def _others(locks: Path) -> list[tuple[str, str]]:
    """(token, listing) of all processes that are writing; what dead ones left is removed."""
    living = []
    for lock in sorted(locks.glob(f"{_SESSION}*.lock")):
        if is_held(lock):
            token, _, listing = lock.stem.removeprefix(_SESSION).partition("-")
            living.append((token, listing))
        else:
            lock.unlink(missing_ok=True)
    return living


def _refuse_others(path: Path, others: list[tuple[str, str]], listing: str, *, anew: bool) -> None:
    if not others:
        return
    if anew:
        raise InputError(
            f"{path}: another process is extracting into it, so it cannot be made anew: wait until"
            " that has finished, or stop it"
        )
    if any(theirs != listing for _, theirs in others):
        raise InputError(
            f"{path}: another process is extracting other recordings into it: give both the same"
            " devices file, with all recordings, and they share the work; or wait until that one"
            " has finished"
        )


def _remove_leftovers(path: Path, living: set[str]) -> None:
    """Remove what writers that are gone left unpublished, in the store and beside it."""
    beside = re.compile(rf"{re.escape(ASIDE)}[0-9]+-[0-9a-f]{{8}}-{re.escape(path.name)}")
    left = [p for p in path.parent.glob(f"{ASIDE}*") if beside.fullmatch(p.name)]
    left += [*path.glob(f"{ASIDE}*"), *path.glob(".zarr.json.*.partial")]
    for leftover in left:
        writer = leftover.name.removeprefix(ASIDE).partition("-")[0]
        if writer in living or _is_running(writer):
            continue
        with writing(path):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)


def _is_running(writer: str) -> bool:
    """Whether a process of this machine, by its number, writes without a session."""
    if not writer.isdigit() or os.name == "nt":
        return False
    try:
        os.kill(int(writer), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return int(writer) != os.getpid()


def _tidy(path: Path, locks: Path) -> None:
    """Remove what processes left that joined and died, and lock files that nobody can hold."""
    with held(locks / "store.lock"):
        others = _others(locks)
        _remove_leftovers(path, {token for token, _ in others})
        if not others:
            for lock in locks.glob("recording-*.lock"):
                lock.unlink(missing_ok=True)
