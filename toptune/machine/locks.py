"""Locks between processes, on one machine or on several that share a file system.

While a process holds the lock on a path, no other process can. The system releases the lock when
the process ends, in whatever way, so that nothing stays locked. The lock file remains, and means
nothing by itself.
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

# Network file systems raise the first of these if their server's lock service is not running.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


class NoLocksError(InputError):
    """A file system cannot lock files."""


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock inside the context; yield whether this process holds it.

    The lock file's folder is created. Without `wait`, a lock held by another process is not waited
    for.

    Raises
    ------
    NoLocksError
        The file system does not support locks.
    StorageError
        The lock file cannot be created.
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
    """Tell whether another process, or another lock of this process, holds a lock."""
    if not path.exists():
        return False
    with held(path, wait=False) as ours:
        return not ours


def _acquire(path: Path, *, wait: bool) -> FileLock | None:
    # The thread that releases the lock may be another than the one that acquired it.
    lock = FileLock(path, thread_local=False)
    with writing(path), warnings.catch_warnings():
        # The library would fall back on the existence of a file, which a killed process leaves.
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
        f"{path.parent}: this file system cannot lock files ({cause}), so two processes could"
        " overwrite each other's work: write to a local disk and copy the complete result, or have"
        " the network file system mounted with locks"
    )
