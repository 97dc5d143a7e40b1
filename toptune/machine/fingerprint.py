"""Files told apart by content, and by size and time as long as those stay.

A file or folder enters; a sha256 (64 hex digits) or a stamp (JSON-able) leaves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from toptune.errors import InputError

_HASH_BLOCK = 2**20


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes; of a folder, that of its files' names and sha256s in order."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(path: Path) -> list[list[Any]]:
    """Sizes and modification times: as long as they stay, the bytes are taken to be the same."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def require_regular(path: Path, *, folder: bool = True) -> None:
    """Refuse what is neither a file nor a folder: reading a pipe or a device never ends.

    Parameters
    ----------
    path
        What a user named.
    folder
        Whether a folder will do.

    Raises
    ------
    InputError
        Nothing is there, or something else, or no such name can be.
    """
    try:
        there = path.exists()
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise InputError(f"{str(path)[:200]!r}: no file can have this name ({error})") from None
    if not there:
        raise InputError(f"{path}: no such file{' or folder' if folder else ''}")
    if path.is_dir() and not folder:
        raise InputError(f"{path}: is a folder, where a file is needed")
    if not path.is_dir() and not path.is_file():
        raise InputError(f"{path}: is neither a file nor a folder: copy its content into a file")
