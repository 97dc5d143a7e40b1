"""Locks between processes, on one machine or several that share a file system.

The path of a lock file enters; while a lock is held no other process holds one on that path. The
system lets go of a lock when its process ends, however it ends, so that nothing stays locked. The
lock file stays and means nothing by itself.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from toptune.errors import InputError
from toptune.machine.durable import writing

# Of these, network file systems give the first where their server's lock service is not running.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


class NoLocksError(InputError):
    """A file system cannot lock files."""


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock for a while.

    Parameters
    ----------
    path
        Of the lock file; its folder is made.
    wait
        Until another process lets go; otherwise False is given when it is held.

    Yields
    ------
    bool
        Whether it is held by us.

    Raises
    ------
    NoLocksError
        The file system has no locks.
    StorageError
        The lock file cannot be made.
    """
    lock = _acquire(path, wait=wait)
    if lock is None:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process, or another lock of this one, holds a lock on a lock file."""
    if not path.exists():
        return False
    with held(path, wait=False) as ours:
        return not ours


def _acquire(path: Path, *, wait: bool) -> FileLock | None:
    # What one thread has claimed another may finish, and let go of.
    lock = FileLock(path, thread_local=False)
    with writing(path), warnings.catch_warnings():
        # The library would go on with files as locks, which a killed process leaves locked.
        warnings.filterwarnings("error", "flock not supported")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            return None
        except (NotImplementedError, UserWarning) as error:
            raise _no_locks(path, str(error)) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise _no_locks(path, str(error.strerror)) from None
            raise
    return lock


def _no_locks(path: Path, cause: str) -> NoLocksError:
    return NoLocksError(
        f"{path.parent}: this file system cannot lock files ({cause}), so two processes could spoil"
        " each other's work: write to a local disk and copy the result when it is complete, or have"
        " the network file system mounted with locks"
    )
