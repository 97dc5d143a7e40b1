"""Writing into one store by several processes at a time.

All processes that write at a time list the same recordings, and each recording is written by one of
them. Readers need no lock. A process may let others join, on any machine that sees the same files:
they write for it, and need not know the list.

What says so is beside the store, in ``.NAME.zarr.locks``: a lock, or a claim, while a process
begins or ends; one of its own as long as it works; and one for each recording that it works on.
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
from toptune.machine.remote import RemotePath
from toptune.params import HighPass, Ptsd, content_key, options_of
from toptune.store.claims import DEAD_S, Claims, claims_of, locks_of
from toptune.store.feature_store import FeatureStore
from toptune.store.places import ASIDE, place_of


class Ticket(NamedTuple):
    """A session that others may join."""

    store: Path
    token: str  # who lets them join
    listing: str  # digest of the recordings that are listed


class StoreSession:
    """One process's part in writing a store whose recordings are listed."""

    def __init__(self, store: FeatureStore, claims: Claims, ticket: Ticket) -> None:
        self.store = store
        self._claims = claims
        self._ticket = ticket

    @property
    def ticket(self) -> Ticket:
        """With which other processes join, as long as this session lasts."""
        return self._ticket

    def claim(self, name: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Claim a recording, by its name in the store, for a while.

        False is given where another process has it; with `wait` it is waited for.
        """
        return self._claims.claim(name, wait=wait)


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
    real = path.resolve()
    claims = claims_of(real)
    listing = content_key([(r.name, r.device, r.label, r.columns) for r in listed])
    token = _new_token()
    with ExitStack() as held_while_writing:
        with claims.beginning():
            others = claims.living()
            _refuse_others(path, others, listing, anew=anew)
            # While all who look for living writers wait, so that none is overlooked.
            check = claims.enter(held_while_writing, token, listing)
            _remove_leftovers(real, {token for token, _ in others})
            store = _open(path, settings, anew=anew)
            store.writer = token
            store.place.guard = check
            store.list_recordings(listed, devices_file)
        yield StoreSession(store, claims, Ticket(real, token, listing))
    _tidy(real, claims)


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
    real = ticket.store.resolve()
    claims = claims_of(real)
    if not isinstance(real, RemotePath) and not locks_of(real).is_dir():
        raise InputError(
            f"{ticket.store}: not to be seen on {platform.node()}: give a path on a file system"
            " that all workers share, under the same name"
        )
    token = _new_token()
    with ExitStack() as held_while_writing:
        check = claims.joins(held_while_writing, ticket.token, token, ticket.listing)
        if check is None:
            blind = "" if isinstance(real, RemotePath) else _BLIND.format(platform.node())
            raise InputError(
                f"{ticket.store}: the process that this one writes for has ended{blind}"
            )
        opened = FeatureStore(real) if store is None else store
        opened.writer = token
        opened.place.guard = check
        yield StoreSession(opened, claims, Ticket(real, token, ticket.listing))


_BLIND = ", or {} does not see its locks: have the file system mounted with locks"


def clock_folder(store: Path) -> Path:
    """Name a folder whose files have their times from the clock of where a store lies."""
    return locks_of(store) if isinstance(store, RemotePath) else store.parent


def _new_token() -> str:
    return f"s{secrets.token_hex(4)}"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep all others from beginning to write into a store for a while.

    It is an InputError if a process is writing into it.
    """
    claims = claims_of(path.resolve())
    with claims.beginning():
        if claims.living():
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
    if anew or not place_of(path).exists():
        FeatureStore.create(path.resolve(), settings, replace=True)
        return FeatureStore(path)
    refuse_other_settings(path, settings)
    return FeatureStore(path)


def _refuse_others(path: Path, others: list[tuple[str, str]], listing: str, *, anew: bool) -> None:
    if not others:
        return
    if anew:
        raise InputError(
            f"{path}: another process is extracting into it, so it cannot be made anew: wait until"
            f" that has finished, or stop it{_forgotten(path)}"
        )
    if any(theirs != listing for _, theirs in others):
        raise InputError(
            f"{path}: another process is extracting other recordings into it: give both the same"
            " devices file, with all recordings, and they share the work; or wait until that one"
            f" has finished{_forgotten(path)}"
        )


def _forgotten(path: Path) -> str:
    """Say when a process that died is known to have."""
    if not isinstance(path, RemotePath):
        return ""
    return f" (if it died on another machine, it counts for {DEAD_S:.0f} s more)"


def _remove_leftovers(path: Path, living: set[str]) -> None:
    """Remove what writers that are gone left unpublished, in the store and beside it."""
    if isinstance(path, RemotePath):
        return  # what is not published is written over
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


def _tidy(path: Path, claims: Claims) -> None:
    """Remove what processes left that joined and died, and claims that nobody can have."""
    with claims.beginning():
        others = claims.living()
        _remove_leftovers(path, {token for token, _ in others})
        if not others:
            claims.tidy()
