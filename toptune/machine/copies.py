"""Local copies of objects: a cache bounded in bytes, which all processes of a user share.

A copy is whole or not there. Each has a lock file: who fetches it holds that alone, and who uses it
holds it together with others, so that no copy goes while it is in use. The system releases what a
killed process held.

``TOPTUNE_CACHE_DIR`` names the folder, and ``TOPTUNE_CACHE_BYTES`` the most that it may hold.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from toptune.errors import InputError, StorageError
from toptune.machine.caches import home, usable_or_private
from toptune.machine.objects import Found, Objects

# Without another word, the copies take up to this share of what the disk has beside other files.
_SHARE = 0.5
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BYTES = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)i?B?", re.IGNORECASE)
# An entry's folder: what it is a copy of, how many bytes, and whose it is while it is not whole.
_ENTRY = re.compile(r"([0-9a-f]{32})\.(\d+)(\.partial-[0-9a-f]+)?")


class Lease:
    """A copy that stays as long as this object, or a path that was made of it, is kept."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self.path = descriptor, path

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)


@dataclass(frozen=True)
class Original:
    """What is copied: an object or, with several files, all below a URL."""

    url: str
    name: str
    files: Mapping[str, Found]  # by their place in the copy; "" for the object itself

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(one.size for one in self.files.values())

    @property
    def key(self) -> str:
        """Name the content, by what the server says of it."""
        text = f"{self.url}\0{sorted(self.files.items())}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def copy_of(original: Original, objects: Objects, prefix: str) -> Lease:
    """Find a local copy or fetch one; `objects` holds the files below `prefix`.

    Raises
    ------
    InputError
        The server refuses or fails, the objects change meanwhile, or the cache is too small.
    StorageError
        The copy cannot be written.
    """
    folder = _folder()
    with _writing(original, folder):
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{original.key}.{original.n_bytes}"
        while True:
            descriptor = _locked(folder / f"{original.key}.lock", fcntl.LOCK_SH)
            if _is_whole(place, original):
                os.utime(descriptor)  # it was used last now
                return Lease(descriptor, place / original.name)
            os.close(descriptor)
            with _alone(folder / f"{original.key}.lock"):
                if not _is_whole(place, original):
                    _fetch(original, objects, prefix, place)


def copy_at_hand(original: Original) -> Lease | None:
    """Find a local copy; None where there is none."""
    folder = _folder()
    place = folder / f"{original.key}.{original.n_bytes}"
    if not _is_whole(place, original):
        return None
    try:
        descriptor = _locked(folder / f"{original.key}.lock", fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # someone is about to remove it, or nobody may lock anything there
        return None
    if not _is_whole(place, original):
        os.close(descriptor)
        return None
    os.utime(descriptor)  # it was used last now
    return Lease(descriptor, place / original.name)


def _fetch(original: Original, objects: Objects, prefix: str, place: Path) -> None:
    partial = place.with_name(f"{place.name}.partial-{secrets.token_hex(4)}")
    with _alone(place.parent / "room.lock"):
        _make_room(place.parent, original)
        # The folder's name tells others how much it is going to hold.
        partial.mkdir()
    try:
        for below, found in original.files.items():
            target = partial / original.name / below if below else partial / original.name
            target.parent.mkdir(parents=True, exist_ok=True)
            objects.copy("/".join(filter(None, (prefix, below))), target, found)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_whole(place: Path, original: Original) -> bool:
    """Tell whether a copy is there with the sizes that it should have."""
    try:
        return all(
            (place / original.name / below).stat().st_size == found.size
            if below
            else (place / original.name).stat().st_size == found.size
            for below, found in original.files.items()
        )
    except OSError:
        return False


class _Entry(NamedTuple):
    """A copy in the cache, or what is to become one."""

    path: Path
    key: str
    n_bytes: int
    is_partial: bool

    @property
    def lock(self) -> Path:
        return self.path.with_name(f"{self.key}.lock")

    @property
    def last_use(self) -> float:
        with suppress(OSError):
            return self.lock.stat().st_mtime
        return 0.0


def _entries(folder: Path) -> list[_Entry]:
    """List all of them: what is not whole first, then those that were used longest ago."""
    found = [
        _Entry(one, match[1], int(match[2]), bool(match[3]))
        for one in folder.iterdir()
        if (match := _ENTRY.fullmatch(one.name))
    ]
    return sorted(found, key=lambda one: (not one.is_partial, one.last_use))


def _make_room(folder: Path, original: Original) -> None:
    """Remove copies that nobody uses, those used longest ago first, until there is room."""
    limit, entries = _limit(folder), _entries(folder)
    held = sum(one.n_bytes for one in entries)
    for one in entries:
        # What a killed process left unfinished goes in any case.
        if not one.is_partial and held + original.n_bytes <= limit:
            break
        if _removed(one, is_ours=one.key == original.key):
            held -= one.n_bytes
    _remove_locks(folder, {original.key, *(one.key for one in entries)})
    if held + original.n_bytes > limit:
        in_use = f", of which {held:,} are in use" if held else ""
        raise InputError(
            f"{original.url}: {original.n_bytes:,} bytes do not fit the local copies in {folder},"
            f" which may take {limit:,} bytes{in_use}: set TOPTUNE_CACHE_BYTES to more, or"
            " TOPTUNE_CACHE_DIR to a folder on a larger disk"
        )


def _remove_locks(folder: Path, keys: set[str]) -> None:
    """Remove the lock files of copies that were given up."""
    for lock in folder.glob("*.lock"):
        if lock.stem not in keys and re.fullmatch("[0-9a-f]{32}", lock.stem):
            _removed(_Entry(lock.with_suffix(""), lock.stem, 0, True), is_ours=False)


def _removed(one: _Entry, *, is_ours: bool) -> bool:
    """Remove a copy, unless someone else uses it or is fetching it."""
    if is_ours:  # this process holds its lock
        shutil.rmtree(one.path, ignore_errors=True)
        return True
    try:
        descriptor = _locked(one.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        shutil.rmtree(one.path, ignore_errors=True)
        one.lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    descriptor = _locked(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path, how: int) -> int:
    """Lock a file, which whoever held it before may have removed meanwhile."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116  # the same call for both
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _folder() -> Path:
    given = os.environ.get("TOPTUNE_CACHE_DIR")
    if given:
        return Path(given).expanduser().absolute()
    base, own = os.environ.get("XDG_CACHE_HOME"), home()
    usual = Path(base) if base else own / ".cache" if own else Path("~")
    return usable_or_private(usual / "toptune" / "copies", "copies")


def _limit(folder: Path) -> int:
    """Say how many bytes the copies may take."""
    given = os.environ.get("TOPTUNE_CACHE_BYTES", "").strip()
    match = _BYTES.fullmatch(given)
    if given and match is None:
        raise InputError(
            f"TOPTUNE_CACHE_BYTES={given[:40]}: a number of bytes is needed, such as 200000000000"
            " or 200G"
        )
    # An unfinished copy has not taken its room from the disk yet.
    held = sum(one.n_bytes for one in _entries(folder) if not one.is_partial)
    room = shutil.disk_usage(folder).free + held
    if match is None:
        return int(_SHARE * room)
    return min(room, int(float(match[1]) * _UNITS[match[2].upper()]))


@contextmanager
def _writing(original: Original, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{original.url}: no local copy of it can be written to {folder}"
            f" ({error.strerror or type(error).__name__}): make room there, or set"
            " TOPTUNE_CACHE_DIR to another folder"
        ) from None
