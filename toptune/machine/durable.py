"""Files and folders that are complete or absent: after a kill, a full disk or a loss of power.

Content is forced to the disk before a name points at it, and the name before anything relies on it;
otherwise a machine that loses power may keep the name and lose the content.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from toptune.errors import StorageError
from toptune.machine.remote import RemotePath

# Waiting for the disk takes no processor time, and files forced out together share its journal.
_SYNC_THREADS = 8
# Some network file systems cannot sync folders; their servers do it themselves.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}
# Errors of renameat2 if the system or the file system cannot exchange two names.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn an `OSError` of writing into a StorageError of one line that says how to go on."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            way_out = "make room and run the same command again"
        else:
            way_out = "fix that and run the same command again"
        raise StorageError(
            f"{place} cannot be written ({cause}): {way_out}; what was published is kept"
        ) from error


def sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows cannot open folders, and writes names at once
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in _NO_FOLDER_SYNC):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Force all files of a folder to the disk, then the names in all folders, innermost first."""
    found = sorted(folder.rglob("*"), reverse=True)
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="toptune-sync") as pool:
        list(pool.map(sync, [path for path in found if not path.is_dir()]))
    for path in found:
        if path.is_dir():
            sync(path)
    sync(folder)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, or the object of a URL, or replace it; a reader sees the old or the new."""
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with part.open("wb") as file:
            file.write(data)
        sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync(path.parent)


def move_into_place(aside: Path, place: Path, *, replace: bool) -> None:
    """Move a finished folder to its final name, on the same file system.

    With `replace`, a folder of that name is replaced as a whole; without, it is a FileExistsError.
    """
    sync_tree(aside)
    if replace and place.exists():
        _swap(aside, place)
        sync(place.parent)
        # Removed last, so that a loss of power leaves either the old folder or the new.
        shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        # Renaming would silently replace an empty folder.
        if place.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(place))
        aside.rename(place)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, "exists already", str(place)) from None
        raise
    sync(place.parent)


def _swap(aside: Path, place: Path) -> None:
    """Swap the names of two folders, in one step if the system can."""
    if exchange(aside, place):
        return
    old = aside.with_name(f"{aside.name}{OLD_SUFFIX}")
    place.rename(old)
    try:
        aside.rename(place)
    except BaseException:
        old.rename(place)
        raise
    old.rename(aside)


#: Suffix of a folder moved out of the way where two names cannot be exchanged in one step.
OLD_SUFFIX = ".old"


def exchange(a: Path, b: Path) -> bool:
    """Exchange two names in one step; return False if the system cannot.

    It is Linux's renameat2(2) with RENAME_EXCHANGE, which local file systems support and most
    network file systems do not.
    """
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(b))
