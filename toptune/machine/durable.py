"""Files and folders that are whole or not there: after a kill, on a full disk, without power.

Contents and finished folders enter, and stand under their names when the call returns. What is on
disk is forced out before a name points at it, and the name before anything builds on it; otherwise
a machine that loses power may keep the name and lose the bytes.
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

# Waiting for the disk needs no processor; files forced out side by side share its journal's turns.
_SYNC_THREADS = 8
# Folders of some network file systems cannot be forced out; their servers do it themselves.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}
# What renameat2 says where the system or the file system cannot exchange two names.
_NO_EXCHANGE = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn what the system says of failed writes into one line with the way out.

    Raises
    ------
    StorageError
        The block met an `OSError`.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            way_out = "make room and run the same command again"
        else:
            way_out = "see to it and run the same command again"
        raise StorageError(
            f"{place} cannot be written ({cause}): {way_out}; what was published is kept"
        ) from error


def sync(path: Path) -> None:
    """Force a file or a folder's names out to the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # Windows opens no folders; it writes their names through
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
    """Force out all files of a folder, then all folders' names, the innermost first."""
    found = sorted(folder.rglob("*"), reverse=True)
    with ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="toptune-sync") as pool:
        list(pool.map(sync, [path for path in found if not path.is_dir()]))
    for path in found:
        if path.is_dir():
            sync(path)
    sync(folder)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, in place of one of that name: readers see the old one or the new one."""
    data = content.encode() if isinstance(content, str) else content
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
    """Give a finished folder its name; one that has it already is taken out whole, and removed.

    Parameters
    ----------
    aside
        On the same file system as `place`; gone when this returns.
    place
        The name.
    replace
        Whether a folder may stand there.

    Raises
    ------
    FileExistsError
        `place` is taken and not to be replaced.
    """
    sync_tree(aside)
    if replace and place.exists():
        _swap(aside, place)
        sync(place.parent)
        # Only now, so that a loss of power leaves the one or the other.
        shutil.rmtree(aside, ignore_errors=True)
        return
    try:
        # An empty folder would be replaced in silence.
        if place.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(place))
        aside.rename(place)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, "exists already", str(place)) from None
        raise
    sync(place.parent)


def _swap(aside: Path, place: Path) -> None:
    """Let two folders change their names, at once where the system can."""
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


#: Ends the name of what was moved out of the way where two names cannot be exchanged at once.
OLD_SUFFIX = ".old"


def exchange(a: Path, b: Path) -> bool:
    """Let two names change their meaning at once; False where the system cannot.

    Linux's renameat2(2) with RENAME_EXCHANGE, which local file systems know and most network file
    systems do not.
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
